//! `dunlin check`, `criu check`: what this kernel and these privileges allow,
//! feature by feature, found by trying.

use std::fs::File;
use std::path::Path;

use caps::{CapSet, Capability};
use serde::Serialize;

use super::Failure;
use crate::base::{Blame, Error, Result};

/// One thing that was tried.
#[derive(Debug, Serialize)]
struct Feature {
    /// A short name, as `criu check --feature` takes it.
    name: &'static str,
    /// What it is for.
    purpose: &'static str,
    /// Whether nothing works without it.
    required: bool,
    /// Whether it is there.
    available: bool,
    /// Why not.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

fn feature(
    name: &'static str,
    purpose: &'static str,
    required: bool,
    tried: Result<()>,
) -> Feature {
    Feature {
        name,
        purpose,
        required,
        available: tried.is_ok(),
        reason: tried.err().map(|e| e.to_string()),
    }
}

fn features() -> Vec<Feature> {
    vec![
        feature(
            "cap_sys_admin",
            "namespaces, mounts, set_tid",
            true,
            capability(Capability::CAP_SYS_ADMIN),
        ),
        feature(
            "cap_sys_ptrace",
            "stopping and reading tasks",
            true,
            capability(Capability::CAP_SYS_PTRACE),
        ),
        feature(
            "cap_net_admin",
            "sockets and devices of network namespaces",
            false,
            capability(Capability::CAP_NET_ADMIN),
        ),
        feature(
            "cap_sys_resource",
            "raising limits above the hard ones",
            false,
            capability(Capability::CAP_SYS_RESOURCE),
        ),
        feature(
            "map_files",
            "files behind mappings",
            true,
            readable("/proc/self/map_files"),
        ),
        feature(
            "pagemap",
            "which pages exist",
            true,
            readable("/proc/self/pagemap"),
        ),
        feature(
            "timens",
            "clocks that go on where they were",
            false,
            readable("/proc/self/timens_offsets"),
        ),
        feature("memfd", "descriptors of memory", false, Ok(())),
    ]
}

fn capability(capability: Capability) -> Result<()> {
    match caps::has_cap(None, CapSet::Effective, capability) {
        Ok(true) => Ok(()),
        Ok(false) => Err(Error::errno(capability.to_string(), libc::EPERM)),
        Err(e) => Err(Error::other(Blame::Kernel, capability.to_string(), e)),
    }
}

fn readable(path: &str) -> Result<()> {
    let opened = if Path::new(path).is_dir() {
        std::fs::read_dir(path).map(|_| ())
    } else {
        File::open(path).map(|_| ())
    };
    opened.map_err(|e| Error::os(path, e))
}

/// Whether a task's memory can be filled while it runs.
pub(crate) fn lazy_pages() -> bool {
    readable("/dev/userfaultfd").is_ok()
}

/// Whether a dump or restore is worth trying.
///
/// # Errors
/// The first privilege that is missing.
pub(crate) fn privileges() -> Result<()> {
    for needed in [Capability::CAP_SYS_ADMIN, Capability::CAP_SYS_PTRACE] {
        capability(needed).map_err(|e| e.within("dunlin needs root"))?;
    }
    Ok(())
}

/// Whether everything that is required is there.
///
/// # Errors
/// The first thing that is not.
pub(crate) fn required() -> Result<()> {
    match features().into_iter().find(|f| f.required && !f.available) {
        None => Ok(()),
        Some(missing) => Err(Error::new(
            Blame::Kernel,
            format!("feature {}", missing.name),
            missing.reason.unwrap_or_default(),
        )),
    }
}

/// `criu check`.
///
/// # Errors
/// Something that was asked for is missing or not known.
pub(crate) fn criu(names: &[String], all: bool) -> Result<()> {
    let features = features();
    if names.iter().any(|name| name == "list") {
        let names: Vec<_> = features.iter().map(|f| f.name).collect();
        println!("{}", names.join(" "));
        return Ok(());
    }
    let mut looks_good = true;
    for name in names {
        let found = features
            .iter()
            .find(|f| f.name == name)
            .ok_or_else(|| Error::caller(format!("feature {name}"), "is not known"))?;
        looks_good &= say(found);
    }
    if names.is_empty() {
        for feature in features.iter().filter(|f| all || f.required) {
            if !feature.available {
                looks_good &= say(feature);
            }
        }
    }
    if looks_good {
        println!("Looks good.");
        return Ok(());
    }
    println!("Does not look good.");
    Err(Error::new(Blame::Kernel, "check", "something is missing"))
}

fn say(feature: &Feature) -> bool {
    if let Some(reason) = &feature.reason {
        println!("{} ({}): {reason}", feature.name, feature.purpose);
    }
    feature.available
}

/// `dunlin check [--json]`.
///
/// # Errors
/// Something that is required is missing.
pub(crate) fn main(args: &[String]) -> Result<(), Failure> {
    let json = match args {
        [] => false,
        [flag] if flag == "--json" => true,
        [first, ..] => {
            return Err(Failure::Usage(Error::caller(
                format!("argument {first:?}"),
                "dunlin check takes only --json",
            )));
        }
    };
    let features = features();
    if json {
        let text = serde_json::to_string_pretty(&features)
            .map_err(|e| Error::other(Blame::Us, "JSON", e))?;
        println!("{text}");
    } else {
        for f in &features {
            let state = match (f.available, f.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            println!("{:<3} {:<22} {}", state, f.name, f.purpose);
            if let Some(reason) = &f.reason {
                println!("      {reason}");
            }
        }
    }
    Ok(required()?)
}
