//! Where held tasks are, in a journal: written by those who hold, read by those
//! who settle.

use serde_json::{Value, json};

use crate::base::{Error, HostPid, Result};
use crate::engine::hold::Place;

/// For a journal; others may add fields of their own.
pub(super) fn to_json(place: &Place) -> Value {
    json!({
        "hierarchy": place.hierarchy,
        "cgroup": place.path,
        "origins": place.origins.iter().map(|(p, o)| json!([p.0, o])).collect::<Vec<_>>(),
    })
}

/// Reads it back.
///
/// # Errors
/// Not ours.
pub(super) fn from_json(v: &Value) -> Result<Place> {
    let text = |k: &str| {
        v.get(k)
            .and_then(Value::as_str)
            .map(str::to_owned)
            .ok_or_else(|| Error::caller("journal", format!("has no {k}")))
    };
    let origins = v.get("origins").and_then(Value::as_array);
    Ok(Place {
        hierarchy: text("hierarchy")?,
        path: text("cgroup")?,
        origins: origins
            .into_iter()
            .flatten()
            .filter_map(|o| {
                let pid = i32::try_from(o.get(0)?.as_i64()?).ok()?;
                Some((HostPid(pid), o.get(1)?.as_str()?.to_owned()))
            })
            .collect(),
    })
}
