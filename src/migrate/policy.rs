//! What a foreign bundle may bring. Its config.json is root on this host (hooks
//! run here, binds name our paths), so it is taken apart and only what is on
//! the list below goes into the one that runc will read. What is not on the list
//! is denied by name, before anything is frozen; the operator may allow binds,
//! devices, namespaces, sysctls and the cgroup path one by one.

use serde_json::{Map, Value};

/// What the operator of the receiver allows beyond the list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Policy {
    /// Host paths that may be bound into the container; a path allows what is below it.
    pub binds: Vec<String>,
    /// Device nodes (`linux.devices[].path`).
    pub devices: Vec<String>,
    /// Paths of namespaces to join.
    pub namespaces: Vec<String>,
    /// Names of sysctls.
    pub sysctls: Vec<String>,
    /// Cgroup paths; a path allows what is below it.
    pub cgroups: Vec<String>,
    /// Sorts of namespaces of which it need not have its own: it lives in the host's.
    pub host_namespaces: Vec<String>,
    /// Where its cgroups go here, whatever its configuration says.
    pub cgroups_path: Option<String>,
}

/// A configuration that may be used here.
#[derive(Debug, Clone, PartialEq)]
pub struct Admitted {
    /// What is written as config.json: only fields of the list, `root.path` = `rootfs`.
    pub config: Value,
}

/// Most reasons that are given.
const MAX_REASONS: usize = 32;

const TOP: &[&str] = &[
    "ociVersion",
    "process",
    "root",
    "hostname",
    "domainname",
    "mounts",
    "annotations",
    "linux",
];
const PROCESS: &[&str] = &[
    "terminal",
    "consoleSize",
    "user",
    "args",
    "env",
    "cwd",
    "capabilities",
    "rlimits",
    "noNewPrivileges",
    "apparmorProfile",
    "oomScoreAdj",
    "selinuxLabel",
];
const LINUX: &[&str] = &[
    "uidMappings",
    "gidMappings",
    "sysctl",
    "resources",
    "cgroupsPath",
    "namespaces",
    "devices",
    "seccomp",
    "rootfsPropagation",
    "maskedPaths",
    "readonlyPaths",
    "mountLabel",
    "personality",
    "timeOffsets",
];
const RESOURCES: &[&str] = &[
    "devices",
    "memory",
    "cpu",
    "pids",
    "blockIO",
    "hugepageLimits",
    "network",
    "unified",
];
const SECCOMP: &[&str] = &[
    "defaultAction",
    "defaultErrnoRet",
    "architectures",
    "flags",
    "syscalls",
];
const MOUNT_TYPES: &[&str] = &[
    "proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2",
];

/// Namespaces that keep a container from seeing and touching what is the host's.
pub const OWN: &[&str] = &["pid", "network", "ipc", "uts", "mount"];

struct Judge<'a> {
    policy: &'a Policy,
    denied: Vec<String>,
}

/// Judges a foreign config.json.
///
/// # Errors
/// Each thing that is denied, by name.
pub fn admit(config: &[u8], policy: &Policy) -> std::result::Result<Admitted, Vec<String>> {
    let value: Value = serde_json::from_slice(config)
        .map_err(|e| vec![format!("config.json cannot be read: {e}")])?;
    let mut j = Judge {
        policy,
        denied: Vec::new(),
    };
    let config = j.top(value);
    if j.denied.is_empty() {
        Ok(Admitted { config })
    } else {
        let more = j.denied.len().saturating_sub(MAX_REASONS);
        j.denied.truncate(MAX_REASONS);
        if more > 0 {
            j.denied.push(format!("and {more} more"));
        }
        Err(j.denied)
    }
}

impl Judge<'_> {
    fn deny(&mut self, what: impl Into<String>) {
        self.denied.push(what.into());
    }

    fn only(&mut self, at: &str, v: Value, allowed: &[&str]) -> Map<String, Value> {
        let Value::Object(map) = v else {
            self.deny(format!("{at} is no object"));
            return Map::new();
        };
        let mut out = Map::new();
        for (k, v) in map {
            if allowed.contains(&k.as_str()) {
                out.insert(k, v);
            } else if !is_empty(&v) {
                self.deny(format!(
                    "{at}{}{k} is not allowed",
                    if at.is_empty() { "" } else { "." }
                ));
            }
        }
        out
    }

    fn top(&mut self, v: Value) -> Value {
        let mut out = self.only("", v, TOP);
        if let Some(p) = out.remove("process") {
            let p = self.only("process", p, PROCESS);
            out.insert("process".into(), Value::Object(p));
        }
        let readonly = out
            .get("root")
            .and_then(|r| r.get("readonly"))
            .and_then(Value::as_bool)
            .unwrap_or(false);
        // Whatever it was called at the source, it lands in our own place.
        out.insert(
            "root".into(),
            serde_json::json!({"path": "rootfs", "readonly": readonly}),
        );
        if let Some(a) = out.remove("annotations") {
            out.insert("annotations".into(), self.annotations(a));
        }
        if let Some(Value::Array(mounts)) = out.remove("mounts") {
            for m in &mounts {
                self.mount(m);
            }
            out.insert("mounts".into(), Value::Array(mounts));
        }
        let l = out.remove("linux").unwrap_or_else(|| serde_json::json!({}));
        let l = self.linux(l);
        out.insert("linux".into(), l);
        Value::Object(out)
    }

    fn annotations(&mut self, v: Value) -> Value {
        let Value::Object(map) = v else {
            self.deny("annotations is no object");
            return Value::Null;
        };
        for k in map.keys() {
            // Runtimes read these as orders.
            if ["org.criu.", "run.oci.", "org.systemd.property."]
                .iter()
                .any(|p| k.starts_with(p))
            {
                self.deny(format!("annotation {} is not allowed", printable(k)));
            }
        }
        Value::Object(map)
    }

    fn mount(&mut self, m: &Value) {
        let text = |k: &str| m.get(k).and_then(Value::as_str).unwrap_or("");
        let destination = printable(text("destination"));
        for k in m.as_object().into_iter().flat_map(Map::keys) {
            if !["destination", "type", "source", "options"].contains(&k.as_str()) {
                self.deny(format!(
                    "mount {destination}: field {} is not allowed",
                    printable(k)
                ));
            }
        }
        let bind = text("type") == "bind"
            || m.get("options").and_then(Value::as_array).is_some_and(|o| {
                o.iter()
                    .any(|x| matches!(x.as_str(), Some("bind" | "rbind")))
            });
        if bind {
            let source = text("source");
            if !below_any(source, &self.policy.binds) {
                self.deny(format!(
                    "bind of {} at {destination} is not allowed here (receive --allow-bind {0})",
                    printable(source)
                ));
            }
        } else if !MOUNT_TYPES.contains(&text("type")) {
            self.deny(format!(
                "mount of type {} at {destination} is not allowed",
                printable(text("type"))
            ));
        }
    }

    fn linux(&mut self, v: Value) -> Value {
        let mut l = self.only("linux", v, LINUX);
        for (field, name, allowed) in [
            ("devices", "path", self.policy.devices.clone()),
            ("namespaces", "path", self.policy.namespaces.clone()),
        ] {
            for d in l.get(field).and_then(Value::as_array).into_iter().flatten() {
                let Some(path) = d.get(name).and_then(Value::as_str) else {
                    continue;
                };
                if !path.is_empty() && !allowed.iter().any(|a| a == path) {
                    let flag = field.trim_end_matches('s');
                    self.denied.push(format!(
                        "{flag} {} is not allowed here (receive --allow-{flag} {0})",
                        printable(path)
                    ));
                }
            }
        }
        self.own_namespaces(&l);
        for k in l
            .get("sysctl")
            .and_then(Value::as_object)
            .into_iter()
            .flat_map(Map::keys)
        {
            if !self.policy.sysctls.iter().any(|a| a == k) {
                self.denied.push(format!(
                    "sysctl {} is not allowed here (receive --allow-sysctl {0})",
                    printable(k)
                ));
            }
        }
        if let Some(here) = &self.policy.cgroups_path {
            l.insert("cgroupsPath".into(), here.as_str().into());
        } else if let Some(p) = l.get("cgroupsPath").and_then(Value::as_str)
            && !p.is_empty()
            && !below_any(p, &self.policy.cgroups)
        {
            self.denied.push(format!(
                "cgroupsPath {} is not allowed here (receive --allow-cgroup {0})",
                printable(p)
            ));
        }
        if let Some(r) = l.remove("resources") {
            let r = self.only("linux.resources", r, RESOURCES);
            for rule in r
                .get("devices")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                // A rule that allows a whole class of block devices opens our disks.
                let allow = rule.get("allow").and_then(Value::as_bool).unwrap_or(false);
                let kind = rule.get("type").and_then(Value::as_str).unwrap_or("a");
                let char_only = kind == "c" || kind == "u";
                let access = rule.get("access").and_then(Value::as_str).unwrap_or("rwm");
                if allow && !char_only && access != "m" {
                    self.denied.push(format!(
                        "device rule {} is not allowed",
                        printable(&rule.to_string())
                    ));
                }
            }
            l.insert("resources".into(), Value::Object(r));
        }
        if let Some(s) = l.remove("seccomp") {
            let s = self.only("linux.seccomp", s, SECCOMP);
            l.insert("seccomp".into(), Value::Object(s));
        }
        Value::Object(l)
    }
}

impl Judge<'_> {
    /// One without a namespace of its own lives in this host's.
    fn own_namespaces(&mut self, linux: &Map<String, Value>) {
        let list = linux.get("namespaces").and_then(Value::as_array);
        let sorts: Vec<&str> = list
            .into_iter()
            .flatten()
            .filter_map(|n| n.get("type")?.as_str())
            .collect();
        for sort in OWN {
            let allowed = self.policy.host_namespaces.iter().any(|a| a == sort);
            if !sorts.contains(sort) && !allowed {
                self.deny(format!(
                    "it has no {sort} namespace of its own, and this host's is not allowed \
                     (receive --host-namespace {sort})"
                ));
            }
        }
    }
}

fn is_empty(v: &Value) -> bool {
    match v {
        Value::Null => true,
        Value::Array(a) => a.is_empty(),
        Value::Object(o) => o.values().all(is_empty),
        Value::String(s) => s.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// Whether `path` is one of `allowed` or below one, part by part.
fn below_any(path: &str, allowed: &[String]) -> bool {
    let p = std::path::Path::new(path);
    p.is_absolute()
        && p.components()
            .all(|c| !matches!(c, std::path::Component::ParentDir))
        && allowed.iter().any(|a| p.starts_with(a))
}

fn printable(s: &str) -> String {
    crate::wire::transport::printable(s)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn admit_json(v: &Value, p: &Policy) -> std::result::Result<Admitted, Vec<String>> {
        admit(v.to_string().as_bytes(), p)
    }

    fn plain() -> Value {
        json!({
            "ociVersion": "1.0.2",
            "process": {"args": ["/x"], "user": {"uid": 0, "gid": 0}, "cwd": "/"},
            "root": {"path": "/srv/any/where", "readonly": true},
            "hostname": "c",
            "hooks": {},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["ro"]}
            ],
            "linux": {
                "resources": {"devices": [{"allow": false, "access": "rwm"}]},
                "namespaces": [
                    {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"},
                    {"type": "mount"}
                ],
                "maskedPaths": ["/proc/kcore"]
            }
        })
    }

    #[test]
    fn a_default_bundle_is_admitted_with_its_root_in_our_place() {
        let a = admit_json(&plain(), &Policy::default()).unwrap();
        assert_eq!(
            a.config["root"],
            json!({"path": "rootfs", "readonly": true})
        );
        assert!(a.config.get("hooks").is_none());
    }

    #[test]
    fn each_door_into_this_host_is_denied_by_name() {
        type Edit = fn(&mut Value);
        let cases: &[(Edit, &str)] = &[
            (
                |v| v["hooks"] = json!({"prestart": [{"path": "/bin/sh"}]}),
                "hooks",
            ),
            (
                |v| v["annotations"] = json!({"org.criu.config": "/tmp/x"}),
                "org.criu.config",
            ),
            (
                |v| v["annotations"] = json!({"run.oci.handler": "wasm"}),
                "run.oci.handler",
            ),
            (
                |v| v["mounts"][0] = json!({"destination": "/x", "type": "bind", "source": "/etc"}),
                "/etc",
            ),
            (
                |v| v["mounts"][0] = json!({"destination": "/x", "type": "none", "source": "/root", "options": ["rbind"]}),
                "/root",
            ),
            (
                |v| {
                    v["mounts"][0] =
                        json!({"destination": "/x", "type": "ext4", "source": "/dev/sda1"})
                },
                "ext4",
            ),
            (
                |v| {
                    v["mounts"][0] =
                        json!({"destination": "/x", "type": "overlay", "options": ["lowerdir=/"]})
                },
                "overlay",
            ),
            (
                |v| v["linux"]["devices"] = json!([{"path": "/dev/sda", "type": "b"}]),
                "/dev/sda",
            ),
            (
                |v| {
                    v["linux"]["namespaces"] =
                        json!([{"type": "network", "path": "/proc/1/ns/net"}])
                },
                "/proc/1/ns/net",
            ),
            (
                |v| {
                    v["linux"]["namespaces"]
                        .as_array_mut()
                        .unwrap()
                        .retain(|n| n["type"] != "network")
                },
                "--host-namespace network",
            ),
            (|v| v["linux"] = json!({}), "no pid namespace"),
            (
                |v| v["linux"]["sysctl"] = json!({"kernel.core_pattern": "|/x"}),
                "kernel.core_pattern",
            ),
            (
                |v| v["linux"]["cgroupsPath"] = json!("/../x"),
                "cgroupsPath",
            ),
            (
                |v| v["linux"]["resources"]["devices"] = json!([{"allow": true, "access": "rwm"}]),
                "device rule",
            ),
            (
                |v| v["linux"]["intelRdt"] = json!({"closID": "x"}),
                "linux.intelRdt",
            ),
            (
                |v| v["linux"]["seccomp"] = json!({"listenerPath": "/x"}),
                "linux.seccomp.listenerPath",
            ),
            (|v| v["vm"] = json!({"kernel": {"path": "/x"}}), "vm"),
        ];
        for (edit, word) in cases {
            let mut v = plain();
            edit(&mut v);
            let why = admit_json(&v, &Policy::default()).unwrap_err().join("; ");
            assert!(why.contains(word), "{word}: {why}");
        }
    }

    #[test]
    fn what_the_operator_allows_is_allowed_and_no_more() {
        let p = Policy {
            binds: vec!["/srv/data".into()],
            ..Policy::default()
        };
        for (source, ok) in [
            ("/srv/data", true),
            ("/srv/data/sub", true),
            ("/srv/database", false),
            ("/srv/data/../../etc", false),
            ("srv/data", false),
        ] {
            let mut v = plain();
            v["mounts"][0] = json!({"destination": "/x", "type": "bind", "source": source});
            assert_eq!(admit_json(&v, &p).is_ok(), ok, "{source}");
        }
    }

    #[test]
    fn what_is_no_json_is_refused() {
        assert!(admit(b"{", &Policy::default()).is_err());
        assert!(admit(b"[]", &Policy::default()).is_err());
    }
}
