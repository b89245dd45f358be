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
const MOUNT: &[&str] = &["destination", "type", "source", "options"];
const NAMESPACE: &[&str] = &["type", "path"];
const DEVICE: &[&str] = &["type", "path", "major", "minor", "fileMode", "uid", "gid"];
const DEVICE_RULE: &[&str] = &["allow", "type", "major", "minor", "access"];
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

    /// Only these fields, as they are written here: runc reads `Path` as `path` too,
    /// and what is judged must be what it reads.
    fn fields(&mut self, what: &str, v: &Value, allowed: &[&str]) {
        let Some(map) = v.as_object() else {
            return self.deny(format!("{what} is no object"));
        };
        for k in map.keys().filter(|k| !allowed.contains(&k.as_str())) {
            self.deny(format!("{what}: field {} is not allowed", printable(k)));
        }
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
        self.fields(&format!("mount {destination}"), m, MOUNT);
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
        for (field, fields, allowed) in [
            ("devices", DEVICE, self.policy.devices.clone()),
            ("namespaces", NAMESPACE, self.policy.namespaces.clone()),
        ] {
            for d in l.get(field).and_then(Value::as_array).into_iter().flatten() {
                self.fields(field.trim_end_matches('s'), d, fields);
                let Some(path) = d.get("path").and_then(Value::as_str) else {
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
        let nodes: Vec<Node> = l
            .get("devices")
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .map(node)
            .collect();
        if let Some(r) = l.remove("resources") {
            let r = self.only("linux.resources", r, RESOURCES);
            for rule in r
                .get("devices")
                .and_then(Value::as_array)
                .into_iter()
                .flatten()
            {
                self.fields("device rule", rule, DEVICE_RULE);
                // What reads and writes others, or all, opens our disks and memory.
                let allow = rule.get("allow").and_then(Value::as_bool).unwrap_or(false);
                let access = rule.get("access").and_then(Value::as_str).unwrap_or("rwm");
                if allow
                    && access != "m"
                    && !is_harmless(&node(rule))
                    && !nodes.contains(&node(rule))
                {
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

/// Sort, major and minor number of a device node, or of those that a rule is about;
/// `None`: all.
type Node = (String, Option<i64>, Option<i64>);

fn node(v: &Value) -> Node {
    let sort = match v.get("type").and_then(Value::as_str).unwrap_or("a") {
        "u" => "c",
        other => other,
    };
    // runc: -1 is all.
    let number = |k: &str| v.get(k).and_then(Value::as_i64).filter(|n| *n >= 0);
    (sort.to_owned(), number("major"), number("minor"))
}

/// Those that runtimes give to every container: null, zero, full, random, urandom,
/// tty, console, ptmx, its own terminals, tun.
fn is_harmless((sort, major, minor): &Node) -> bool {
    let memory = [3, 5, 7, 8, 9];
    sort == "c"
        && match (major, minor) {
            (Some(1), Some(n)) => memory.contains(n),
            (Some(5), Some(n)) => (0..3).contains(n),
            (Some(136), _) => true,
            // In containerd's list; of use in a network namespace of its own only.
            (Some(10), Some(200)) => true,
            _ => false,
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
#[path = "policy/tests.rs"]
mod tests;
