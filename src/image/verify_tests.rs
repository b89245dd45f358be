use super::*;
use crate::base::Blame;
use crate::image::records::*;

/// A tree of two tasks, the first with two threads, and a zombie.
fn whole() -> Set {
    let mut set = Set::new();
    let inventory = InventoryEntry {
        img_version: VERSION,
        ..Default::default()
    };
    set.put(Kind::Inventory, 0, &inventory);
    for (pid, ppid, threads) in [(1, 0, vec![1, 2]), (3, 1, vec![3]), (4, 1, vec![0])] {
        let task = PstreeEntry {
            pid,
            ppid,
            pgid: 1,
            sid: 1,
            threads,
        };
        set.push(Kind::Pstree, 0, &task);
    }
    for (tid, task_state) in [
        (1, Some(task_state::ALIVE)),
        (2, None),
        (3, Some(task_state::STOPPED)),
        (4, Some(task_state::DEAD)),
    ] {
        let runs = task_state != Some(task_state::DEAD);
        let core = CoreEntry {
            mtype: March::X86_64.into(),
            thread_info: runs.then(ThreadInfoX86::default),
            thread_core: runs.then(ThreadCoreEntry::default),
            tc: task_state.map(|task_state| TaskCoreEntry {
                task_state,
                ..Default::default()
            }),
            ..Default::default()
        };
        set.put(Kind::Core, tid, &core);
    }
    for pid in [1, 3] {
        let ids = TaskKobjIdsEntry {
            files_id: pid,
            ..Default::default()
        };
        set.put(Kind::Ids, pid, &ids);
        set.put(Kind::Fs, pid, &FsEntry::default());
        set.put(Kind::Mm, pid, &MmEntry::default());
        set.put(Kind::Pagemap, pid, &PagemapHead { pages_id: pid });
        let fd = FdinfoEntry {
            id: 9,
            r#type: FdTypes::Reg.into(),
            ..Default::default()
        };
        set.push(Kind::Fdinfo, pid, &fd);
    }
    let file = FileEntry {
        r#type: FdTypes::Reg.into(),
        id: 9,
        reg: Some(RegFileEntry::default()),
        ..Default::default()
    };
    set.push(Kind::Files, 0, &file);
    set
}

/// The image is refused, and the error says all of these.
fn refused(set: &Set, words: &[&str]) {
    let error = set.verify().unwrap_err();
    assert_eq!(error.blame(), Blame::Image, "{error}");
    for word in words {
        assert!(error.to_string().contains(word), "{word} in: {error}");
    }
}

#[test]
fn a_whole_image_passes() {
    whole().verify().unwrap();
}

#[test]
fn an_image_that_lost_a_file_is_refused_by_the_name_of_the_file() {
    for name in [
        "inventory.img",
        "core-1.img",
        "core-2.img",
        "core-4.img",
        "ids-3.img",
        "fs-1.img",
        "mm-3.img",
        "pagemap-1.img",
        "pstree.img",
    ] {
        let mut set = whole();
        set.remove(name).unwrap();
        refused(&set, &[name]);
    }
    let mut set = whole();
    set.remove("files.img").unwrap();
    refused(&set, &["fdinfo-1.img record 0", "files.img"]);
}

#[test]
fn an_image_of_another_architecture_is_refused_by_its_name() {
    let mut set = whole();
    let core = CoreEntry {
        mtype: March::Aarch64.into(),
        tc: Some(TaskCoreEntry::default()),
        ..Default::default()
    };
    set.put(Kind::Core, 3, &core);
    refused(&set, &["core-3.img", "another architecture", "Aarch64"]);
}

#[test]
fn an_image_of_another_version_is_refused() {
    let mut set = whole();
    let inventory = InventoryEntry {
        img_version: 3,
        ..Default::default()
    };
    set.put(Kind::Inventory, 0, &inventory);
    refused(&set, &["inventory.img", "version 3"]);
}

#[test]
fn a_file_of_another_type_is_refused_by_its_name() {
    let mut set = whole();
    let other = set.raw("mm-1.img").unwrap().to_vec();
    set.put_raw("fs-1.img", other.clone()).unwrap();
    refused(&set, &["fs-1.img", "another type", "0x57492820"]);
    let mut old = other;
    old.drain(..4);
    let mut set = whole();
    set.put_raw("mm-1.img", old).unwrap();
    refused(&set, &["mm-1.img", "no image of format 1.1"]);
}

#[test]
fn a_tree_that_contradicts_itself_is_refused_by_record() {
    let entry = |pid, ppid, threads: &[u32]| PstreeEntry {
        pid,
        ppid,
        pgid: 1,
        sid: 1,
        threads: threads.to_vec(),
    };
    let cases = [
        (entry(1, 1, &[1]), "used twice"),
        (entry(3, 1, &[3]), "used twice"),
        (entry(5, 77, &[5]), "parent 77"),
        (entry(5, 1, &[6]), "first thread"),
        (entry(0, 1, &[0]), "no thread id"),
        (entry(u32::MAX, 1, &[u32::MAX]), "no thread id"),
    ];
    for (task, why) in cases {
        let mut set = whole();
        set.push(Kind::Pstree, 0, &task);
        refused(&set, &["pstree.img record 3", why]);
    }
}

#[test]
fn areas_that_overlap_or_are_no_pages_are_refused_by_task() {
    let area = |start, end| VmaEntry {
        start,
        end,
        ..Default::default()
    };
    for vmas in [
        vec![area(0x1000, 0x3000), area(0x2000, 0x4000)],
        vec![area(0x1001, 0x3000)],
        vec![area(0x3000, 0x1000)],
        vec![area(0x3000, 0x3000)],
    ] {
        let mut set = whole();
        let mm = MmEntry {
            vmas,
            ..Default::default()
        };
        set.put(Kind::Mm, 3, &mm);
        refused(&set, &["mm-3.img area"]);
    }
}

#[test]
fn descriptors_that_clash_are_refused() {
    let mut set = whole();
    let fd = FdinfoEntry {
        id: 9,
        r#type: FdTypes::Reg.into(),
        ..Default::default()
    };
    set.push(Kind::Fdinfo, 3, &fd);
    refused(&set, &["fdinfo-3.img record 1", "used twice"]);
}
