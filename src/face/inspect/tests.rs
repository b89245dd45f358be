use super::*;
use crate::image::pages::PagesWriter;
use crate::image::records::*;
use crate::image::{Kind, Set, vma};

fn core(comm: &str, state: u32, exit_code: u32) -> CoreEntry {
    CoreEntry {
        mtype: March::X86_64.into(),
        thread_info: Some(ThreadInfoX86::default()),
        tc: Some(TaskCoreEntry {
            task_state: state,
            exit_code,
            comm: String::from(comm),
            ..Default::default()
        }),
        thread_core: Some(ThreadCoreEntry {
            comm: Some(String::from(comm)),
            creds: Some(CredsEntry {
                euid: 1000,
                ..Default::default()
            }),
            cg_set: Some(2),
            ..Default::default()
        }),
        ..Default::default()
    }
}

fn area(start: u64, end: u64, prot: u32, status: u32, shmid: u64) -> VmaEntry {
    VmaEntry {
        start,
        end,
        shmid,
        prot,
        flags: 2,
        status: vma::REGULAR | status,
        fd: -1,
        ..Default::default()
    }
}

/// A tree with a zombie, a thread, all the shared things once.
fn image(dir: &std::path::Path) -> Set {
    let mut set = Set::new();
    let inventory = InventoryEntry {
        img_version: 2,
        ..Default::default()
    };
    set.put(Kind::Inventory, 0, &inventory);
    for (pid, ppid, threads) in [(1, 0, vec![1, 4]), (2, 1, vec![2]), (3, 1, vec![0])] {
        let task = PstreeEntry {
            pid,
            ppid,
            pgid: 1,
            sid: 1,
            threads,
        };
        set.push(Kind::Pstree, 0, &task);
    }
    set.put(Kind::Core, 1, &core("init", 1, 0));
    set.put(Kind::Core, 2, &core("wor\u{1b}[2Jker", 1, 0));
    set.put(Kind::Core, 3, &core("gone", 2, 0x300));
    let mut thread = core("helper", 1, 0);
    thread.tc = None;
    set.put(Kind::Core, 4, &thread);
    for pid in [1, 2] {
        let ids = TaskKobjIdsEntry {
            vm_id: pid,
            files_id: 1,
            fs_id: pid,
            sighand_id: pid,
            uts_ns_id: Some(5),
            mnt_ns_id: Some(6),
            ..Default::default()
        };
        set.put(Kind::Ids, pid, &ids);
        let fs = FsEntry {
            cwd_id: 1,
            root_id: 1,
            umask: Some(0o22),
        };
        set.put(Kind::Fs, pid, &fs);
        let mm = MmEntry {
            exe_file_id: 2,
            vmas: vec![
                area(0x40_0000, 0x40_2000, 5, vma::FILE_PRIVATE, 2),
                area(0x7000_0000, 0x7010_0000, 3, vma::ANON_PRIVATE, 0),
            ],
            ..Default::default()
        };
        set.put(Kind::Mm, pid, &mm);
        let mut pages = PagesWriter::create(dir, pid).unwrap();
        pages.write(0x7000_0000, &[7; 0x3000], false).unwrap();
        let rest = crate::base::PageRange::new(0x7008_0000, 0x700a_0000).unwrap();
        pages.mark(rest, crate::image::pages::PE_LAZY);
        pages.finish(&mut set, Kind::Pagemap, pid).unwrap();
    }
    for (id, name, pos) in [(1, "/", 0), (2, "/bin/init", 0), (3, "/var/log/x", 77)] {
        let file = FileEntry {
            r#type: FdTypes::Reg.into(),
            id,
            reg: Some(RegFileEntry {
                id,
                pos,
                flags: 0o100_001,
                name: String::from(name),
                ..Default::default()
            }),
            ..Default::default()
        };
        set.push(Kind::Files, 0, &file);
    }
    let socket = FileEntry {
        r#type: FdTypes::Inetsk.into(),
        id: 4,
        isk: Some(InetSkEntry {
            id: 4,
            proto: 6,
            state: 10,
            src_port: 8080,
            src_addr: vec![u32::from_ne_bytes([127, 0, 0, 1])],
            ..Default::default()
        }),
        ..Default::default()
    };
    set.push(Kind::Files, 0, &socket);
    for (fd, id, r#type) in [(5, 4, FdTypes::Inetsk), (1, 3, FdTypes::Reg)] {
        let fdinfo = FdinfoEntry {
            id,
            flags: u32::from(fd == 5),
            r#type: r#type.into(),
            fd,
            ..Default::default()
        };
        set.push(Kind::Fdinfo, 1, &fdinfo);
    }
    let uts = UtsnsEntry {
        nodename: String::from("box"),
        domainname: String::new(),
    };
    set.put(Kind::Utsns, 5, &uts);
    let mount = MntEntry {
        fstype: 5,
        mnt_id: 30,
        root_dev: 42,
        parent_mnt_id: 29,
        flags: 1,
        root: String::from("/"),
        mountpoint: String::from("/tmp"),
        source: String::from("tmpfs"),
        ..Default::default()
    };
    set.push(Kind::Mountpoints, 6, &mount);
    set.put_raw("tmpfs-dev-42.tar.gz.img", vec![0; 100])
        .unwrap();
    let cgroup = CgroupEntry {
        sets: vec![CgSetEntry {
            id: 2,
            ctls: vec![CgMemberEntry {
                name: String::new(),
                path: String::from("/box"),
                cgns_prefix: None,
            }],
        }],
        controllers: Vec::new(),
    };
    set.put(Kind::Cgroup, 0, &cgroup);
    set
}

const EXPECTED: &str = r#"
tasks
  PID  PPID  PGID  SID  STATE          THR  UID   MAPPED  PRESENT  LAZY     COMMAND
  1    0     1     1    alive          2    1000  1 MiB   12 KiB   128 KiB  init
  2    1     1     1    alive          1    1000  1 MiB   12 KiB   128 KiB  \u{20}\u{20}wor\u{1b}[2Jker
  3    1     1     1    dead (exit 3)  1    -     -       -        -        \u{20}\u{20}gone
  threads of 1: 1 init, 4 helper

memory
  OF     AREAS  MAPPED  PRESENT  ELSEWHERE  PARENT  ZERO  PAGES FILE
  pid 1  2      1 MiB   12 KiB   128 KiB    -       -     pages-1.img
  pid 2  2      1 MiB   12 KiB   128 KiB    -       -     pages-2.img

descriptors
  PID  FD    KIND  FLAGS        POSITION  NAME
  1    cwd   file                         /
  1    root  file                         /
  1    exe   file                         /bin/init
  1    1     file  0o100001     77        /var/log/x
  1    5     inet  0o0 cloexec            tcp 127.0.0.1:8080 listens
  2    cwd   file                         /
  2    root  file                         /
  2    exe   file                         /bin/init
  2    1     file  0o100001     77        /var/log/x
  2    5     inet  0o0 cloexec            tcp 127.0.0.1:8080 listens

namespaces
  KIND  ID  TASKS  CONTENT
  uts   5   2      host "box"
  mnt   6   2      1 mounts

mounts
  NS  ID  PARENT  MOUNTPOINT  TYPE   SOURCE  ROOT  OPTIONS  CONTENT
  6   30  29      /tmp        tmpfs  tmpfs   /     ro       archive of 100 B

control groups
  SET  HIERARCHY  PATH  TASKS
  2    (v2)       /box  1 2
"#;

#[test]
fn an_image_is_shown_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path()).store(dir.path()).unwrap();
    let report = Report::read(dir.path()).unwrap();
    assert_eq!(report.image.damage, None);
    let text = text::render(&report, &[]);
    let (head, body) = text.split_at(text.find("\ntasks").unwrap());
    assert!(head.contains("made by dunlin"), "{head}");
    assert_eq!(body, EXPECTED.replace("\\u{20}", " "));
}

#[test]
fn json_says_the_same_and_keeps_to_the_sections() {
    let dir = tempfile::tempdir().unwrap();
    image(dir.path()).store(dir.path()).unwrap();
    let report = Report::read(dir.path()).unwrap();
    let json = |sections: &[Section]| -> serde_json::Value {
        serde_json::from_str(&report.json(sections).unwrap()).unwrap()
    };
    let all = json(&[]);
    assert_eq!(all["tasks"][0]["memory"]["present"], 0x3000);
    assert_eq!(all["tasks"][0]["descriptors"][1]["fd"], 5);
    assert_eq!(all["tasks"][0]["namespaces"]["uts"], 5);
    assert_eq!(all["cgroups"][0]["places"][""], "/box");
    let mounts = json(&[Section::Mounts]);
    assert_eq!(mounts["mounts"][0]["mountpoint"], "/tmp");
    assert!(mounts.get("tasks").is_none());
}

#[test]
fn an_image_that_is_not_whole_is_shown_with_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = image(dir.path());
    set.remove("mm-2.img");
    set.store(dir.path()).unwrap();
    let report = Report::read(dir.path()).unwrap();
    let text = text::render(&report, &[Section::Ps]);
    assert!(
        text.contains("NOT WHOLE: mm-2.img: is not in the image"),
        "{text}"
    );
    assert!(text.contains("  1    0     1     1"), "{text}");
}

#[test]
fn a_directory_without_an_image_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(Report::read(dir.path()).is_err());
    assert!(Report::read(&dir.path().join("none")).is_err());
}

#[test]
fn a_tree_without_end_is_refused() {
    let mut set = Set::new();
    let task = PstreeEntry {
        pid: 1,
        threads: vec![1; crate::base::limits::MAX_TASKS + 1],
        ..Default::default()
    };
    set.push(Kind::Pstree, 0, &task);
    let e = Report::of(&set).unwrap_err().to_string();
    assert!(e.starts_with("pstree.img: has more than"), "{e}");
}

#[test]
fn tasks_come_right_behind_their_parents() {
    let mut set = Set::new();
    for (pid, ppid) in [(1, 0), (2, 1), (3, 1), (4, 2), (5, 3), (6, 2)] {
        let task = PstreeEntry {
            pid,
            ppid,
            ..Default::default()
        };
        set.push(Kind::Pstree, 0, &task);
    }
    let report = Report::of(&set).unwrap();
    let order: Vec<_> = report.tasks.iter().map(|t| (t.pid, t.depth)).collect();
    assert_eq!(order, [(1, 0), (2, 1), (4, 2), (6, 2), (3, 1), (5, 2)]);
}
