use super::*;
use proptest::prelude::*;

fn facts(side: Side) -> Facts {
    Facts {
        side,
        id: "c1".into(),
        session: "00".into(),
        peer: "peer".into(),
        port: serde_json::json!({"cgroup": "/x"}),
    }
}

#[test]
fn what_was_recorded_is_read_back_after_the_owner_died() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::create(dir.path(), facts(Side::Source)).unwrap();
    let path = path_of(dir.path(), Side::Source, "c1").unwrap();
    assert!(is_owned(&path).unwrap());
    j.note(serde_json::json!("held")).unwrap();
    j.advance(Phase::Granted).unwrap();
    assert!(Journal::take_over(&path).is_err(), "its owner lives");
    drop(j);
    let (j, story) = Journal::take_over(&path).unwrap();
    assert_eq!(story.phase, Phase::Granted);
    assert_eq!(story.note, Some(serde_json::json!("held")));
    assert_eq!(story.facts, facts(Side::Source));
    j.settle().unwrap();
    assert!(list(dir.path()).unwrap().is_empty());
}

#[test]
fn a_second_migration_of_an_unsettled_container_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    drop(Journal::create(dir.path(), facts(Side::Source)).unwrap());
    let e = Journal::create(dir.path(), facts(Side::Source)).unwrap_err();
    assert!(e.to_string().contains("dunlin resolve"), "{e}");
    Journal::create(dir.path(), facts(Side::Destination)).unwrap();
}

#[test]
fn one_that_was_settled_between_the_opening_and_the_lock_is_not_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let j = Journal::create(dir.path(), facts(Side::Source)).unwrap();
    let path = j.path().to_owned();
    let opened = File::open(&path).unwrap();
    j.settle().unwrap();
    let locked = lock(opened, &path).unwrap();
    assert!(is_there(&locked, &path).is_err());
    // Another migration of the same container has begun.
    let _next = Journal::create(dir.path(), facts(Side::Source)).unwrap();
    let e = is_there(&locked, &path).unwrap_err().to_string();
    assert!(e.contains("another one by now"), "{e}");
}

#[test]
fn a_journal_is_whole_and_owned_from_the_moment_that_it_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = path_of(dir.path(), Side::Source, "c1").unwrap();
    for _ in 0..200 {
        let seen = std::thread::scope(|s| {
            let looks = s.spawn(|| {
                while !path.exists() {}
                (read(&path).map(|s| s.phase), Journal::take_over(&path))
            });
            let ours = Journal::create(dir.path(), facts(Side::Source)).unwrap();
            let seen = looks.join().unwrap();
            ours.settle().unwrap();
            seen
        });
        assert_eq!(seen.0.unwrap(), Phase::Prepared);
        assert!(seen.1.is_err(), "it has an owner");
    }
    assert!(fs::read_dir(dir.path()).unwrap().next().is_none());
}

#[test]
fn illegal_moves_are_refused_and_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::create(dir.path(), facts(Side::Destination)).unwrap();
    assert!(j.advance(Phase::Granted).is_err());
    j.advance(Phase::Resuming).unwrap();
    assert!(j.advance(Phase::Aborted).is_err(), "may have run");
    let path = path_of(dir.path(), Side::Destination, "c1").unwrap();
    assert_eq!(read(&path).unwrap().phase, Phase::Resuming);
}

#[test]
fn journals_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let sub = dir.path().join("state");
    Journal::create(&sub, facts(Side::Source)).unwrap();
    let mode = |p: &Path| fs::metadata(p).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&sub), 0o700);
    assert_eq!(mode(&sub.join("c1.source")), 0o600);
}

#[test]
fn an_id_that_leaves_the_directory_or_looks_like_an_option_is_refused() {
    for id in ["", "..", "a/b", ".x", "--all", "a\nb"] {
        assert!(path_of(Path::new("/run/dunlin"), Side::Source, id).is_err());
    }
}

fn whole() -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let mut j = Journal::create(dir.path(), facts(Side::Source)).unwrap();
    for p in [Phase::Granted, Phase::Resumed, Phase::Complete] {
        j.advance(p).unwrap();
    }
    fs::read(dir.path().join("c1.source")).unwrap()
}

proptest! {
    #[test]
    fn a_torn_journal_tells_a_prefix_of_the_story(cut in any::<prop::sample::Index>()) {
        let text = whole();
        let cut = cut.index(text.len());
        let lines = text[..cut].iter().filter(|b| **b == b'\n').count();
        let want = [None, Some(Phase::Prepared), Some(Phase::Granted), Some(Phase::Resumed)];
        prop_assert_eq!(parse(&text[..cut]).ok().map(|s| s.phase), want[lines]);
    }

    #[test]
    fn a_flipped_bit_never_moves_the_story_forward(bit in any::<prop::sample::Index>()) {
        let mut text = whole();
        let bit = bit.index(text.len() * 8);
        text[bit / 8] ^= 1 << (bit % 8);
        if let Ok(s) = parse(&text) {
            // Hex digits have two cases; anything else must not pass.
            prop_assert!(s.phase <= Phase::Complete);
            prop_assert_eq!(s.facts, facts(Side::Source));
        }
    }
}
