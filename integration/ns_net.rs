//! A network namespace of a tree's own, with nothing in it but `lo`: it comes back as
//! it was, and anything else in it is refused by name.

#[path = "harness/mod.rs"]
mod harness;
use harness::*;

use std::path::Path;
use std::process::Command;

const FACETS: [&str; 4] = ["up", "down", "was-up", "settings"];

fn tool(program: &Path, by: &[&str], images: &Path, more: &[&str]) -> Command {
    let mut command = Command::new(program);
    command.args(by).args(more).args(["-v4", "-D"]).arg(images);
    command
}

/// Dumped by one, restored by another; each a program and what comes before its verb.
fn comes_back(scratch: &Scratch, facet: &str, dumper: Tool<'_>, restorer: Tool<'_>) {
    let held = Held::start(scratch, &["unshare", "-n"], &sample("network"), facet);
    let images = scratch.dir(format!("{facet}.img"));
    let pid = held.pid.to_string();
    let dump = ["dump", "-o", "dump.log", "-t", &pid];
    must(&mut tool(dumper.0, dumper.1, &images, &dump));
    Held::are_gone(&[held.pid.as_raw()]);
    let restore = ["restore", "-o", "restore.log", "-d"];
    must(&mut tool(restorer.0, restorer.1, &images, &restore));
    held.is_asked();
    assert_ne!(net_of("self"), net_of(&pid), "{facet}");
}

type Tool<'a> = (&'a Path, &'a [&'a str]);

fn net_of(pid: &str) -> std::path::PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/net")).expect("its network namespace")
}

#[test]
fn lo_comes_back_as_it_was_with_its_settings_and_who_listens_there() {
    needs!(root, gcc);
    adopt_orphans();
    let scratch = Scratch::new("net-lo");
    let ours = dunlin();
    for facet in FACETS {
        comes_back(&scratch, facet, (&ours, &["criu"]), (&ours, &["criu"]));
    }
}

#[test]
fn crossed_a_namespace_with_lo_that_we_dump_criu_restores() {
    needs!(root, gcc, crossed);
    let (ours, criu) = (dunlin(), criu().expect("needed above"));
    adopt_orphans();
    let scratch = Scratch::new("net-to-criu");
    for facet in FACETS {
        comes_back(&scratch, facet, (&ours, &["criu"]), (&criu, &[]));
    }
}

#[test]
fn crossed_a_namespace_with_lo_that_criu_dumps_we_restore() {
    needs!(root, gcc, crossed);
    let (ours, criu) = (dunlin(), criu().expect("needed above"));
    adopt_orphans();
    let scratch = Scratch::new("net-from-criu");
    for facet in FACETS {
        comes_back(&scratch, facet, (&criu, &[]), (&ours, &["criu"]));
    }
}

#[test]
fn crossed_crit_decodes_a_namespace_with_lo() {
    needs!(root, gcc, crossed);
    let Some(crit) = std::env::var_os("CRIT") else {
        skip!("CRIT is not set");
    };
    let scratch = Scratch::new("net-crit");
    let held = Held::start(&scratch, &["unshare", "-n"], &sample("network"), "up");
    let images = scratch.dir("images");
    let pid = held.pid.to_string();
    let dump = ["dump", "-R", "-t", &pid];
    must(&mut tool(&dunlin(), &["criu"], &images, &dump));
    for (prefix, word) in [("netns-", "def_conf6"), ("netdev-", "LOOPBACK")] {
        let mut all = std::fs::read_dir(&images).expect("list images").flatten();
        let file = all
            .find(|e| e.file_name().to_string_lossy().starts_with(prefix))
            .expect("an image of the namespace");
        let outcome = must(Command::new(&crit).arg("show").arg(file.path()));
        assert!(outcome.stdout.contains(word), "{outcome:?}");
    }
}

/// What is set up in the namespace, and what the refusal must say.
const OTHERS: [(&str, &str); 9] = [
    ("ip link add br7 type bridge", "link br7"),
    ("ip addr add 10.7.0.1/32 dev lo", "address 10.7.0.1/32"),
    (
        "ip route add 10.7.0.0/24 dev lo",
        "route to 10.7.0.0/24 in table 254",
    ),
    ("ip rule add fwmark 7 table 7", "routing rule"),
    (
        "tc qdisc add dev lo root pfifo limit 77",
        "queueing discipline",
    ),
    ("nft add table inet seven", "nftables table seven"),
    (
        "ip neigh add 127.0.0.7 lladdr 0:0:0:0:0:0 dev lo",
        "permanent neighbour",
    ),
    ("ip link set lo alias seven", "link lo"),
    (
        "echo 77 > /proc/sys/net/ipv4/ip_unprivileged_port_start",
        "ip_unprivileged_port_start: it is 77, and in a new namespace it is 1024",
    ),
];

#[test]
fn anything_but_lo_is_refused_by_name_and_the_program_goes_on() {
    needs!(root, gcc);
    let program = sample("network");
    for (index, (setup, word)) in OTHERS.iter().enumerate() {
        let scratch = Scratch::new("net-other");
        let through = format!("ip link set lo up && {setup} && exec \"$@\"");
        let through = ["unshare", "-n", "sh", "-c", &through, "sh"];
        let held = Held::start(&scratch, &through, &program, "up");
        let images = scratch.dir("images");
        let pid = held.pid.to_string();
        let mut command = tool(&dunlin(), &["criu"], &images, &["dump", "-t", &pid]);
        let outcome = run(&mut command, PATIENCE);
        assert!(!outcome.ok(), "{index}: {setup}");
        assert!(outcome.stderr.contains(word), "{setup}: {outcome:?}");
        held.is_asked();
    }
}
