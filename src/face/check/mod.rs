//! `dunlin check`, `criu check`: what this kernel and these privileges allow,
//! feature by feature, found by trying.

mod probe;

use caps::Capability;

use super::Failure;
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
