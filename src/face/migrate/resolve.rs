//! `dunlin resolve`: what only a person can settle, and what the journal allows
//! to be settled without asking. The journal is read first, always.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::Value;
use tracing::{info, warn};

use super::args::{self, Decision};
use super::host::KEPT;
use super::orphan::{self, Fate};
use super::{cgroups, eager};
use crate::base::{Error, HostPid, Result, utc};
use crate::engine::hold::{Hold, Verdict};
use crate::engine::options::Stage;
use crate::face::scripts::Scripts;
use crate::face::{Failure, log, out, place};
use crate::migrate::journal::{self, Journal, Phase, Side, Story};
use crate::migrate::loss::LOSS;
use crate::migrate::ports::WHOLE;
use crate::runtime::{kept, runc};
use crate::wire::transport::printable;

/// What is listed of an [`Fate::Orphan`].
const ORPHAN: &str = "it waits for pages that nobody brings any more; dunlin resolve ID stops it";

/// What is listed of a copy that has everything.
const WHOLE_HERE: &str = "it runs here with all its pages; dunlin resolve ID settles it";

/// Lists or settles.
///
/// # Errors
/// Wrong usage; nothing to settle; a decision that the journal forbids.
pub(super) fn main(args: &[String]) -> Result<(), Failure> {
    let r = args::resolve(args)?;
    log::start(log::Sink::Stderr, r.shared.verbosity);
    let Some(id) = r.id else {
        for path in journal::list(&r.shared.state)? {
            // One that cannot be read hides none of the others.
            let said = entry(&path).unwrap_or_else(|e| format!("{}: {e}\n", path.display()));
            out::print(&said)?;
        }
        return Ok(());
    };
    let mut found = false;
    for side in [Side::Source, Side::Destination] {
        let path = journal::path_of(&r.shared.state, side, &id)?;
        if path.exists() {
            found = true;
            let (journal, story) = Journal::take_over(&path)?;
            orphan::stop(&story)?;
            out::tell(&format!("{}\n", settle(journal, &story, r.decision)?));
        }
    }
    if found {
        Ok(())
    } else {
        Err(Error::caller(format!("resolve {id}"), "there is nothing to settle").into())
    }
}

/// A journal as `--list` shows it.
fn entry(path: &Path) -> Result<String> {
    let s = journal::read(path)?;
    let next = if journal::is_owned(path)? {
        "under way"
    } else {
        match orphan::fate(&s)? {
            Fate::Orphan => ORPHAN,
            Fate::Whole if is_whole(&s) => WHOLE_HERE,
            Fate::Gone | Fate::Whole => advice(&s),
        }
    };
    let (f, when) = (&s.facts, utc(s.at / 1000));
    let mut said = format!(
        "{}  {:?} {:?} since {}  peer {}  {next}\n",
        f.id,
        f.side,
        s.phase,
        String::from_utf8_lossy(&when),
        f.peer,
    );
    for line in loss(&s).lines() {
        said += &format!("  loss: {}\n", printable(line));
    }
    Ok(said)
}

/// What was written beside the container of a destination whose memory was lost.
fn loss(s: &Story) -> String {
    let Ok(top) = text(&s.facts.port, "top") else {
        return String::new(); // a source
    };
    let mut said = Vec::new();
    if let Ok(f) = std::fs::File::open(top.join(LOSS)) {
        // What cannot be read is not said.
        let _ = f.take(16 << 10).read_to_end(&mut said);
    }
    String::from_utf8_lossy(&said).into_owned()
}

fn advice(s: &Story) -> &'static str {
    match (s.facts.side, s.phase) {
        (Side::Source, Phase::Prepared | Phase::Aborted | Phase::Complete)
        | (Side::Destination, Phase::Prepared | Phase::Aborted | Phase::Complete) => {
            "dunlin resolve ID settles it"
        }
        (Side::Source, Phase::Granted) => {
            "held; if the destination never ran it: --thaw; if it runs there: --discard"
        }
        (Side::Source, _) => {
            "runs at the destination, which may lack pages; --discard ends this copy"
        }
        (Side::Destination, _) => "may have run here; --discard ends this copy",
    }
}

/// Whether it runs here and every page came, whatever its phase says: whoever
/// received it died before the last word.
fn is_whole(s: &Story) -> bool {
    let noted = s.note.as_ref().is_some_and(|n| n.get(WHOLE).is_some());
    noted && matches!(orphan::fate(s), Ok(Fate::Whole))
}

/// Settles a journal whose owner is gone; says what was done.
fn settle(journal: Journal, s: &Story, decision: Decision) -> Result<String> {
    let id = &s.facts.id;
    let no = |why: &str| Err(Error::caller(format!("resolve {id}"), why.to_owned()));
    let place = s.place();
    if let Ok(dir) = text(place, "eager") {
        eager::remove(&dir)?;
    }
    match (s.facts.side, s.phase, decision) {
        (Side::Source, Phase::Prepared | Phase::Aborted, Decision::Journal | Decision::Thaw) => {
            thaw(place, Verdict::NeverGranted)?;
            journal.settle()?;
            Ok(format!("{id} runs on here"))
        }
        (Side::Source, Phase::Granted, Decision::Thaw) => {
            warn!("{id}: thawed by decision of a person: the destination never ran it");
            thaw(place, Verdict::DestinationAborted)?;
            journal.settle()?;
            Ok(format!("{id} runs on here, by your decision"))
        }
        (Side::Source, Phase::Complete, _)
        | (Side::Source, Phase::Granted | Phase::Resumed, Decision::Discard) => {
            kill(place, id)?;
            journal.settle()?;
            Ok(format!("the copy of {id} that was held here is gone"))
        }
        (Side::Source, Phase::Resumed, Decision::Thaw) => {
            no("it has run at the destination: two copies would run")
        }
        (
            Side::Destination,
            Phase::Prepared | Phase::Aborted,
            Decision::Journal | Decision::Discard,
        )
        | (Side::Destination, Phase::Resuming | Phase::Resumed, Decision::Discard) => {
            discard(place, id)?;
            journal.settle()?;
            Ok(format!("nothing of {id} is left here"))
        }
        (Side::Destination, Phase::Complete, Decision::Journal) => {
            runc::unbind(&text(place, "runc_root")?, id)?;
            remove_used(place);
            journal.settle()?;
            Ok(format!("{id} is whole here; its migration is forgotten"))
        }
        (Side::Destination, _, Decision::Journal) if is_whole(s) => {
            let root = text(place, "runc_root")?;
            runc::unbind(&root, id)?;
            let top = text(place, "top")?;
            kept::give_back(&root, id, &top.join("work").join(KEPT))?;
            remove_used(place);
            journal.settle()?;
            Ok(format!(
                "{id} is whole here; its migration is forgotten. If its source holds a copy still, \
                 dunlin resolve {id} --discard ends that"
            ))
        }
        (Side::Destination, _, Decision::Thaw) => no("--thaw is for the source"),
        _ => no(&format!("the journal says {:?}: {}", s.phase, advice(s))),
    }
}

/// Lets held tasks run on; none held is fine: without a tracer they run already.
fn thaw(at: &Value, verdict: Verdict) -> Result<()> {
    match Hold::adopt(&place::from_json(at)?) {
        Ok(h) => h.release(verdict).map_err(|both| both.1)?,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    // What its scripts have locked, they unlock; if they had not come to it, they
    // find nothing to do.
    let scripts = at.get("scripts").and_then(Value::as_array);
    let scripts = scripts.into_iter().flatten().filter_map(Value::as_str);
    let scripts = Scripts::ordered(scripts.map(PathBuf::from));
    let init = at.get("init").and_then(Value::as_i64);
    let init = init.and_then(|pid| i32::try_from(pid).ok()).map(HostPid);
    scripts.run(Stage::NetworkUnlock.name(), init, None)
}

fn kill(at: &Value, id: &str) -> Result<()> {
    match Hold::adopt(&place::from_json(at)?) {
        Ok(h) => h.kill(Verdict::Superseded).map_err(|both| both.1)?,
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {}
        Err(e) => return Err(e),
    }
    match text(at, "runc_root") {
        Ok(root) => runc::delete(&root, id),
        // Held by a page server, whose caller knows the container.
        Err(_) => Ok(()),
    }
}

pub(super) fn text(v: &Value, key: &str) -> Result<PathBuf> {
    v.get(key)
        .and_then(Value::as_str)
        .map(PathBuf::from)
        .ok_or_else(|| Error::caller("journal", format!("has no {key}")))
}

/// Throws a copy away: what runc knows, what lies on disk.
fn discard(place: &Value, id: &str) -> Result<()> {
    let root = text(place, "runc_root")?;
    let top = text(place, "top")?;
    // Whether runc came to know it or not.
    orphan::kill_all(place, id)?;
    // A restore that was under way notices that nobody will grant; runc forgets
    // the container by itself then, or we ask it to.
    let until = Instant::now() + Duration::from_secs(10);
    loop {
        runc::delete(&root, id)?;
        if !root.join(id).exists() || Instant::now() > until {
            break;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    if let Some(below) = place.get("cgroups_below") {
        cgroups::remove(&top.join("bundle"), id, below);
    }
    match std::fs::remove_dir_all(&top) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(Error::os(format!("remove {}", top.display()), e))
        }
        _ => Ok(()),
    }
}

/// The sockets and logs of a restore serve nobody any more when its copy is whole.
fn remove_used(place: &Value) {
    let Ok(top) = text(place, "top") else { return };
    let dir = top.join("work");
    match std::fs::remove_dir_all(&dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            warn!("remove {}: {e}", dir.display());
        }
        _ => {}
    }
}

/// Settles, without asking, what killed receivers and sources left in `state`.
pub(super) fn settle_stale(state: &Path) {
    for path in journal::list(state).unwrap_or_default() {
        match Journal::take_over(&path) {
            Ok((j, s)) if settles_alone(&s) => match settle(j, &s, Decision::Journal) {
                Ok(said) => info!("{said}"),
                Err(e) => warn!("{e}"),
            },
            Ok((_, s)) => {
                if let Err(e) = orphan::stop(&s) {
                    warn!("{e}");
                }
            }
            Err(e) => info!("{e}"),
        }
    }
}

/// The guard: waits for its parent's death, then settles what may be settled.
///
/// # Errors
/// What could not be settled.
pub(super) fn guard(args: &[String]) -> Result<(), Failure> {
    let [path] = args else {
        return Err(Failure::Usage(Error::caller("guard", "wants a journal")));
    };
    // Returns at the end of the pipe: the parent is gone, or done.
    let mut nothing = [0u8; 1];
    let _ = std::io::stdin().read(&mut nothing);
    let path = Path::new(path);
    if !path.exists() {
        return Ok(());
    }
    // A process that dies closes one descriptor after the other: the journal may
    // be locked for a moment longer than the pipe is open.
    let until = Instant::now() + Duration::from_secs(10);
    let (j, s) = loop {
        match Journal::take_over(path) {
            Ok(x) => break x,
            Err(_) if !path.exists() => return Ok(()),
            Err(e) if Instant::now() > until => return Err(e.into()),
            Err(_) => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    if settles_alone(&s) {
        settle(j, &s, Decision::Journal)?;
    } else {
        orphan::stop(&s)?;
    }
    Ok(())
}

/// Whether nobody has to be asked. A destination that is complete may be settled
/// too, but until its source has forgotten, a person may want to read of it.
fn settles_alone(s: &Story) -> bool {
    match s.facts.side {
        Side::Source => s.phase.source_may_thaw() || s.phase == Phase::Complete,
        Side::Destination => s.phase.destination_may_discard(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::migrate::journal::Facts;

    fn story(dir: &Path, side: Side, phases: &[Phase]) -> (Journal, Story) {
        let facts = Facts {
            side,
            id: "resolve-test".into(),
            session: "00".into(),
            peer: "peer".into(),
            port: serde_json::json!({
                "runc_root": dir.join("runc"), "top": dir.join("top"),
                "hierarchy": "freezer", "cgroup": "/no-such/dunlin-hold", "origins": [],
                "eager": dir.join("eager"),
            }),
        };
        let mut j = Journal::create(dir, facts).unwrap();
        for p in phases {
            j.advance(*p).unwrap();
        }
        let path = j.path().to_owned();
        drop(j);
        Journal::take_over(&path).unwrap()
    }

    #[test]
    fn after_resumed_no_decision_thaws() {
        let dir = tempfile::tempdir().unwrap();
        let (j, s) = story(dir.path(), Side::Source, &[Phase::Granted, Phase::Resumed]);
        for d in [Decision::Thaw, Decision::Journal] {
            let path = j.path().to_owned();
            let (j2, _) = {
                // A second handle on the same journal, as a second call would have.
                let copy = dir.path().join("copy");
                std::fs::create_dir_all(&copy).unwrap();
                std::fs::copy(&path, copy.join("resolve-test.source")).unwrap();
                Journal::take_over(&copy.join("resolve-test.source")).unwrap()
            };
            let e = settle(j2, &s, d).unwrap_err().to_string();
            assert!(e.contains("resolve-test"), "{e}");
        }
    }

    #[test]
    fn pages_that_a_killed_capture_left_in_memory_are_removed() {
        let dir = tempfile::tempdir().unwrap();
        let eager = dir.path().join("eager");
        std::fs::create_dir(&eager).unwrap();
        std::fs::write(eager.join("pages-1.img"), [1; 4096]).unwrap();
        let (j, s) = story(dir.path(), Side::Source, &[]);
        settle(j, &s, Decision::Journal).unwrap();
        assert!(!eager.exists());
    }

    #[test]
    fn granted_needs_a_person() {
        let dir = tempfile::tempdir().unwrap();
        let (j, s) = story(dir.path(), Side::Source, &[Phase::Granted]);
        let path = j.path().to_owned();
        let e = settle(j, &s, Decision::Journal).unwrap_err().to_string();
        assert!(e.contains("--thaw") && e.contains("--discard"), "{e}");
        assert!(path.exists(), "an unsettled journal stays");
    }

    #[test]
    fn a_destination_that_may_have_run_is_not_discarded_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let (j, s) = story(dir.path(), Side::Destination, &[Phase::Resuming]);
        assert!(settle(j, &s, Decision::Journal).is_err());
    }
}
