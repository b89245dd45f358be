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
                v["mounts"][0] = json!({"destination": "/x", "type": "ext4", "source": "/dev/sda1"})
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
            |v| v["linux"]["namespaces"] = json!([{"type": "network", "path": "/proc/1/ns/net"}]),
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
            |v| {
                v["linux"]["resources"]["devices"] = json!([
                    {"allow": true, "type": "c", "major": 21, "access": "rw"}
                ]);
            },
            "device rule",
        ),
        // runc reads these as it reads `path` and `allow`.
        (
            |v| {
                v["linux"]["namespaces"][0] = json!({"type": "pid", "Path": "/proc/1/ns/pid"});
            },
            "namespace: field Path",
        ),
        (
            |v| {
                v["linux"]["devices"] =
                    json!([{"PATH": "/dev/sda", "type": "b", "major": 8, "minor": 0}]);
            },
            "device: field PATH",
        ),
        (
            |v| {
                v["linux"]["resources"]["devices"] = json!([{"Allow": true, "access": "rwm"}]);
            },
            "device rule: field Allow",
        ),
        (
            |v| {
                v["mounts"][0]["Type"] = json!("bind");
            },
            "field Type",
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
fn devices_that_every_container_has_and_those_that_are_allowed_may_be_used() {
    let rule = |major: i64, minor: i64| json!({"allow": true, "type": "c", "major": major, "minor": minor, "access": "rwm"});
    let mut v = plain();
    v["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"},
        {"allow": true, "type": "b", "access": "m"},
        rule(1, 3),
        rule(5, 2),
        {"allow": true, "type": "c", "major": 136, "access": "rwm"},
        rule(10, 229),
    ]);
    v["linux"]["devices"] = json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229}]);
    assert!(admit_json(&v, &Policy::default()).is_err());
    let p = Policy {
        devices: vec!["/dev/fuse".into()],
        ..Policy::default()
    };
    admit_json(&v, &p).unwrap();
}

#[test]
fn what_is_no_json_is_refused() {
    assert!(admit(b"{", &Policy::default()).is_err());
    assert!(admit(b"[]", &Policy::default()).is_err());
}
