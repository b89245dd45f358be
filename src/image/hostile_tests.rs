//! A bounded run over the same doors as the targets in `fuzz/`: valid images with
//! bytes changed, cut, repeated and joined, and bytes that are random. Nothing may
//! panic; time and seeds are fixed, so that it runs with every test.

use super::pages::Pagemap;
use super::records::rpc::{CriuOpts, CriuReq, CriuReqType};
use super::records::*;
use super::{Kind, Set};
use prost::Message;
use std::time::{Duration, Instant};

/// A small generator (xorshift), the same in every run.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end.max(1)).unwrap()).unwrap()
    }

    fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[3]
    }

    /// Changes some of the bytes in one of the usual ways.
    fn mutate(&mut self, bytes: &mut Vec<u8>) {
        for _ in 0..=self.below(4) {
            let at = self.below(bytes.len());
            let len = self.below(16).min(bytes.len() - at.min(bytes.len()));
            match self.below(7) {
                0 if !bytes.is_empty() => bytes[at] ^= 1 << self.below(8),
                1 if !bytes.is_empty() => bytes[at] = self.byte(),
                2 => bytes.truncate(at),
                3 => {
                    bytes.drain(at..at + len);
                }
                4 => {
                    let piece = bytes[at..at + len].to_vec();
                    bytes.splice(at..at, piece);
                }
                5 => {
                    let piece: Vec<u8> = (0..len).map(|_| self.byte()).collect();
                    bytes.splice(at..at, piece);
                }
                // Lengths: the values at which sums overflow.
                _ => {
                    let value = [u32::MAX, 1 << 31, (64 << 20) + 1, 0][self.below(4)];
                    for (byte, new) in bytes[at..].iter_mut().zip(value.to_le_bytes()) {
                        *byte = new;
                    }
                }
            }
        }
    }
}

/// One file of each type that follows its own rules, and some that are plain.
fn image() -> Set {
    let mut set = Set::new();
    let inventory = InventoryEntry {
        img_version: 2,
        root_ids: Some(TaskKobjIdsEntry::default()),
        ..Default::default()
    };
    set.put(Kind::Inventory, 0, &inventory);
    let task = PstreeEntry {
        pid: 1,
        threads: vec![1],
        ..Default::default()
    };
    set.push(Kind::Pstree, 0, &task);
    let core = CoreEntry {
        mtype: March::X86_64.into(),
        thread_info: Some(ThreadInfoX86::default()),
        tc: Some(TaskCoreEntry {
            task_state: 1,
            comm: String::from("task"),
            sigactions: vec![SaEntry::default(); 3],
            timers: Some(TaskTimersEntry::default()),
            ..Default::default()
        }),
        thread_core: Some(ThreadCoreEntry {
            creds: Some(CredsEntry::default()),
            ..Default::default()
        }),
        ids: Some(TaskKobjIdsEntry::default()),
    };
    set.put(Kind::Core, 1, &core);
    let area = VmaEntry {
        start: 0x1000,
        end: 0x5000,
        ..Default::default()
    };
    let mm = MmEntry {
        vmas: vec![area],
        ..Default::default()
    };
    set.put(Kind::Mm, 1, &mm);
    set.put(Kind::Fs, 1, &FsEntry::default());
    set.put(Kind::Pagemap, 1, &PagemapHead { pages_id: 1 });
    for vaddr in [0x1000, 0x3000] {
        let entry = PagemapEntry {
            vaddr,
            compat_nr_pages: 2,
            nr_pages: Some(2),
            flags: Some(4),
            in_parent: None,
        };
        set.push(Kind::Pagemap, 1, &entry);
    }
    let file = FileEntry {
        r#type: 1,
        id: 1,
        reg: Some(RegFileEntry::default()),
        ..Default::default()
    };
    set.push(Kind::Files, 0, &file);
    let fd = FdinfoEntry {
        id: 1,
        ..Default::default()
    };
    set.push(Kind::Fdinfo, 0, &fd);
    let pipe = PipeDataEntry {
        bytes: 3,
        ..Default::default()
    };
    set.push_payload(Kind::PipesData, 0, &pipe, b"abc");
    let packet = SkPacketEntry {
        length: 5,
        ..Default::default()
    };
    set.push_payload(Kind::SkQueues, 0, &packet, b"hello");
    let stream = TcpStreamEntry {
        inq_len: 2,
        outq_len: 3,
        ..Default::default()
    };
    set.push_payload(Kind::TcpStream, 9, &stream, b"inout");
    let sems = IpcSemEntry {
        nsems: 3,
        ..Default::default()
    };
    set.push_payload(Kind::IpcnsSem, 1, &sems, &[0; 6]);
    let queue = IpcMsgEntry {
        qnum: 1,
        ..Default::default()
    };
    let mut message = Vec::new();
    super::frame::push(&mut message, &IpcMsg { mtype: 1, msize: 4 });
    message.extend_from_slice(b"data\0\0\0\0");
    set.push_payload(Kind::IpcnsMsg, 1, &queue, &message);
    let segment = IpcShmEntry {
        size: 4,
        ..Default::default()
    };
    set.push_payload(Kind::IpcnsShm, 1, &segment, b"data");
    let ghost = GhostFileEntry {
        chunks: Some(true),
        ..Default::default()
    };
    set.put(Kind::GhostFile, 1, &ghost);
    let chunk = GhostChunkEntry { len: 4, off: 0 };
    set.push_payload(Kind::GhostFile, 1, &chunk, b"data");
    let map = BpfmapDataEntry {
        keys_bytes: 2,
        values_bytes: 2,
        ..Default::default()
    };
    set.push_payload(Kind::BpfmapData, 0, &map, b"kkvv");
    let cgroup = CgroupEntry {
        controllers: vec![CgControllerEntry {
            dirs: vec![CgroupDirEntry {
                children: vec![CgroupDirEntry::default()],
                ..Default::default()
            }],
            ..Default::default()
        }],
        ..Default::default()
    };
    set.put(Kind::Cgroup, 0, &cgroup);
    set
}

/// Short with every test; `PROPTEST_CASES` (as `make fuzz-short` sets it) makes it
/// a millisecond a case, at most half a minute.
fn time() -> Duration {
    let cases = std::env::var("PROPTEST_CASES").ok();
    let cases = cases.and_then(|cases| cases.parse().ok()).unwrap_or(600);
    Duration::from_millis(cases).min(Duration::from_secs(30))
}

#[test]
fn the_image_that_is_changed_is_valid_before() {
    image().verify().unwrap();
}

#[test]
fn no_change_of_an_image_makes_it_panic() {
    let whole = image();
    let names: Vec<String> = whole.files().map(|(name, _)| name).collect();
    let mut random = Random(0x5eed_0001);
    let until = Instant::now() + time();
    let mut refused = 0u32;
    while Instant::now() < until {
        let mut set = whole.clone();
        let name = &names[random.below(names.len())];
        let mut bytes = set.raw(name).unwrap().to_vec();
        random.mutate(&mut bytes);
        set.put_raw(name.as_str(), bytes).unwrap();
        refused += u32::from(set.verify().is_err());
    }
    assert!(refused > 0);
}

#[test]
fn no_bytes_of_any_type_make_it_panic() {
    let mut random = Random(0x5eed_0002);
    let until = Instant::now() + time();
    while Instant::now() < until {
        for &kind in Kind::ALL {
            let mut bytes = kind.head();
            // Records with a right length get further than noise does.
            for _ in 0..random.below(3) {
                let len = random.below(80);
                let length = u32::try_from(len).unwrap();
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend((0..len).map(|_| random.byte() & 0x3f));
            }
            let mut set = Set::new();
            set.put_raw(kind.file_name(1), bytes).unwrap();
            let _ = set.check_records();
        }
    }
}

#[test]
fn no_pagemap_makes_it_panic_and_what_is_taken_is_in_order() {
    let whole = image().raw("pagemap-1.img").unwrap().to_vec();
    let mut random = Random(0x5eed_0003);
    let until = Instant::now() + time();
    while Instant::now() < until {
        let mut bytes = whole.clone();
        random.mutate(&mut bytes);
        let Ok(map) = Pagemap::decode(Kind::Pagemap, "pagemap-1.img", &bytes) else {
            continue;
        };
        let mut end = 0;
        for run in map.runs() {
            assert!(run.range.start() >= end && !run.range.is_empty());
            end = run.range.end();
            assert_eq!(map.find(end - 1), Some(run));
        }
    }
}

#[test]
fn no_archive_makes_it_panic() {
    let from = tempfile::tempdir().unwrap();
    std::fs::write(from.path().join("file"), "content").unwrap();
    std::fs::create_dir(from.path().join("directory")).unwrap();
    let open = |path: &std::path::Path| std::fs::File::open(path).unwrap();
    let mut packed = Vec::new();
    super::archive::pack(open(from.path()).as_fd(), &mut packed).unwrap();
    let mut tar = Vec::new();
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    flate2::read::GzDecoder::new(&packed[..])
        .read_to_end(&mut tar)
        .unwrap();
    let mut random = Random(0x5eed_0004);
    let until = Instant::now() + time();
    let to = tempfile::tempdir().unwrap();
    while Instant::now() < until {
        let mut bytes = tar.clone();
        random.mutate(&mut bytes);
        // With right sums the members themselves are read.
        for block in bytes.chunks_exact_mut(512) {
            let mut header = tar::Header::from_byte_slice(block).clone();
            header.set_cksum();
            if random.below(8) != 0 && block[257] != 0 {
                block.copy_from_slice(header.as_bytes());
            }
        }
        let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        out.write_all(&bytes).unwrap();
        let archive = out.finish().unwrap();
        let _ = super::archive::unpack(&archive[..], open(to.path()).as_fd());
    }
}

#[test]
fn no_request_makes_it_panic() {
    let request = CriuReq {
        r#type: CriuReqType::Dump.into(),
        opts: Some(CriuOpts {
            images_dir_fd: 3,
            external: vec![String::from("mnt[/a]:b")],
            ..Default::default()
        }),
        ..Default::default()
    };
    let whole = request.encode_to_vec();
    assert_eq!(decode::<CriuReq>(&whole), Ok(request));
    let mut random = Random(0x5eed_0005);
    let until = Instant::now() + time() / 2;
    while Instant::now() < until {
        let mut bytes = whole.clone();
        random.mutate(&mut bytes);
        let _ = decode::<CriuReq>(&bytes);
    }
}
