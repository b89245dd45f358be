//! `make demo`, small: two hosts, a container that moves between them while it
//! runs, and an account that must be good.

#[path = "harness/mod.rs"]
mod harness;

use std::process::Command;
use std::time::Duration;

use harness::*;

fn left_behind() -> Vec<String> {
    let mut left = Vec::new();
    for dir in ["/run/netns", "/sys/class/net", "/sys/fs/cgroup"] {
        let below = Command::new("find")
            .args([dir, "-maxdepth", "2", "-name", "dunlin-demo*"])
            .output();
        let text = below.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
        left.extend(text.unwrap_or_default().lines().map(str::to_owned));
    }
    left
}

#[test]
fn the_demo_moves_a_container_and_leaves_nothing_behind() {
    needs!(root, runc);
    let _alone = whole_machine();
    let mut demo = Command::new(top().join("bundles/demo/run"));
    let outcome = run(
        demo.args(["--mib", "48"]).env("DUNLIN", dunlin()),
        Duration::from_secs(300),
    );
    assert!(outcome.ok(), "{outcome:?}");
    assert!(
        outcome.stdout.contains("The container has moved."),
        "{outcome:?}"
    );
    assert_eq!(left_behind(), Vec::<String>::new());
}

#[test]
fn a_demo_that_fails_leaves_nothing_behind() {
    needs!(root, runc);
    let _alone = whole_machine();
    let mut demo = Command::new(top().join("bundles/demo/run"));
    // A dunlin that can do nothing.
    let outcome = run(
        demo.args(["--mib", "8"]).env("DUNLIN", "/bin/false"),
        Duration::from_secs(120),
    );
    assert!(!outcome.ok(), "{outcome:?}");
    assert!(outcome.stdout.contains("The demo failed"), "{outcome:?}");
    assert_eq!(left_behind(), Vec::<String>::new());
}
