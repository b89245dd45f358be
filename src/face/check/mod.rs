//! `dunlin check`, `criu check`: what this kernel and these privileges allow,
//! feature by feature, found by trying.

mod probe;

use caps::Capability;

use super::{Failure, out};
use crate::base::{Blame, Error, Result};
use probe::{Feature, capability, features};

/// Whether a task's memory can be filled while it runs.
pub(crate) fn lazy_pages() -> bool {
    let has = |name| move |f: &Feature| f.name == name && f.available;
    let features = features();
    features.iter().any(has("uffd")) && features.iter().any(has("uffd-noncoop"))
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
    all_required(features())
}

fn all_required(features: Vec<Feature>) -> Result<()> {
    match features.into_iter().find(|f| f.required && !f.available) {
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
        return out::print(&format!("{}\n", names.join(" ")));
    }
    let mut looks_good = true;
    for name in names {
        let found = features
            .iter()
            .find(|f| f.name == name)
            .ok_or_else(|| Error::caller(format!("feature {name}"), "is not known"))?;
        looks_good &= say(found)?;
    }
    if names.is_empty() {
        for feature in features.iter().filter(|f| all || f.required) {
            if !feature.available {
                looks_good &= say(feature)?;
            }
        }
    }
    if looks_good {
        return out::print("Looks good.\n");
    }
    out::print("Does not look good.\n")?;
    Err(Error::new(Blame::Kernel, "check", "something is missing"))
}

fn say(feature: &Feature) -> Result<bool> {
    if let Some(reason) = &feature.reason {
        let Feature { name, purpose, .. } = feature;
        out::print(&format!("{name} ({purpose}): {reason}\n"))?;
    }
    Ok(feature.available)
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
                "dunlin check takes only --json; see dunlin check --help",
            )));
        }
    };
    let features = features();
    let text = if json {
        serde_json::to_string_pretty(&features).map_err(|e| Error::other(Blame::Us, "JSON", e))?
            + "\n"
    } else {
        features.iter().map(row).collect()
    };
    out::print(&text)?;
    Ok(all_required(features)?)
}

fn row(f: &Feature) -> String {
    let state = match (f.available, f.required) {
        (true, _) => "yes",
        (false, true) => "NO",
        (false, false) => "no",
    };
    let mut row = format!("{:<3} {:<22} {}\n", state, f.name, f.purpose);
    if let Some(reason) = &f.reason {
        row += &format!("      {reason}\n");
    }
    row
}
