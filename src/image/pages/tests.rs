use super::*;
use crate::base::{PAGE_SIZE, PageRange};
use crate::image::records::{PagemapEntry, PagemapHead};
use crate::image::{Kind, Set};
use proptest::prelude::*;

fn page(seed: u64) -> Vec<u8> {
    (0..PAGE_SIZE)
        .map(|i| u8::try_from((i ^ (seed.wrapping_mul(0x9e37_79b9) >> 7)) & 0xff).unwrap())
        .collect()
}

fn range(start: u64, pages: u64) -> PageRange {
    PageRange::with_pages(start, pages).unwrap()
}

/// What a page is made to be.
#[derive(Debug, Clone, Copy)]
enum Made {
    Absent,
    Here,
    HereLazy,
    Elsewhere,
    Zero,
}

fn made() -> impl Strategy<Value = Vec<Made>> {
    prop::collection::vec(
        prop_oneof![
            Just(Made::Absent),
            Just(Made::Here),
            Just(Made::Here),
            Just(Made::HereLazy),
            Just(Made::Elsewhere),
            Just(Made::Zero),
        ],
        1..600,
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_page_comes_back_as_it_was_written(pages in made(), piece in 1usize..40) {
        let dir = tempfile::tempdir().unwrap();
        let mut set = Set::new();
        let mut writer = PagesWriter::create(dir.path(), 3).unwrap();
        let base = 0x7f00_0000_0000;
        let at = |index: usize| base + index as u64 * PAGE_SIZE;
        let mut index = 0;
        while index < pages.len() {
            match pages[index] {
                Made::Absent => {}
                Made::Here | Made::HereLazy => {
                    let lazy = matches!(pages[index], Made::HereLazy);
                    let same = pages[index..]
                        .iter()
                        .take(piece)
                        .take_while(|m| {
                            matches!((m, lazy), (Made::Here, false) | (Made::HereLazy, true))
                        })
                        .count();
                    let bytes: Vec<u8> = (index..index + same)
                        .flat_map(|i| page(i as u64))
                        .collect();
                    if piece % 3 == 0 {
                        let here = range(at(index), same as u64);
                        let offset = writer.reserve(here, lazy).unwrap();
                        writer.fill(offset, &bytes).unwrap();
                    } else {
                        writer.write(at(index), &bytes, lazy).unwrap();
                    }
                    index += same - 1;
                }
                Made::Elsewhere => writer.mark(range(at(index), 1), PE_LAZY),
                Made::Zero => writer.mark(range(at(index), 1), 0),
            }
            index += 1;
        }
        writer.finish(&mut set, Kind::Pagemap, 12).unwrap();
        let reader = PagesReader::open(&set, dir.path(), Kind::Pagemap, 12)
            .unwrap()
            .unwrap();
        for (index, made) in pages.iter().enumerate() {
            let mut found = vec![0xaa; 4096];
            let read = reader.read(at(index), &mut found);
            let held = reader.lookup(at(index)).map(|(_, held)| held);
            match made {
                Made::Absent => {
                    prop_assert_eq!(held, None);
                    prop_assert!(read.is_err());
                }
                Made::Here | Made::HereLazy => {
                    prop_assert_eq!(held, Some(Held::Here));
                    read.unwrap();
                    prop_assert_eq!(found, page(index as u64));
                }
                Made::Elsewhere => {
                    prop_assert_eq!(held, Some(Held::Elsewhere));
                    prop_assert!(read.is_err());
                }
                Made::Zero => {
                    read.unwrap();
                    prop_assert!(found.iter().all(|b| *b == 0));
                }
            }
        }
    }
}

#[test]
fn pages_are_found_through_the_parents() {
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1"), dir.path().join("2"));
    std::fs::create_dir(&first).unwrap();
    std::fs::create_dir(&second).unwrap();
    let mut set = Set::new();
    let mut writer = PagesWriter::create(&first, 1).unwrap();
    let old: Vec<u8> = (0..4).flat_map(page).collect();
    writer.write(0x10000, &old, false).unwrap();
    writer.finish(&mut set, Kind::Pagemap, 5).unwrap();
    std::fs::write(
        first.join("pagemap-5.img"),
        set.raw("pagemap-5.img").unwrap(),
    )
    .unwrap();

    let mut set = Set::new();
    let mut writer = PagesWriter::create(&second, 1).unwrap();
    writer.mark(range(0x10000, 1), PE_PARENT);
    writer.write(0x11000, &page(100), false).unwrap();
    writer.mark(range(0x12000, 2), PE_PARENT);
    writer.finish(&mut set, Kind::Pagemap, 5).unwrap();

    let without = PagesReader::open(&set, &second, Kind::Pagemap, 5).unwrap_err();
    assert!(without.to_string().contains("parent"), "{without}");

    std::os::unix::fs::symlink("../1", second.join("parent")).unwrap();
    let reader = PagesReader::open(&set, &second, Kind::Pagemap, 5)
        .unwrap()
        .unwrap();
    let mut found = vec![0; 4 * 4096];
    reader.read(0x10000, &mut found).unwrap();
    let expected: Vec<u8> = [0, 100, 2, 3].into_iter().flat_map(page).collect();
    assert_eq!(found, expected);
}

#[test]
fn a_chain_of_parents_without_an_end_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = Set::new();
    let mut writer = PagesWriter::create(dir.path(), 1).unwrap();
    writer.mark(range(0x1000, 1), PE_PARENT);
    writer.finish(&mut set, Kind::Pagemap, 5).unwrap();
    std::fs::write(
        dir.path().join("pagemap-5.img"),
        set.raw("pagemap-5.img").unwrap(),
    )
    .unwrap();
    std::os::unix::fs::symlink(".", dir.path().join("parent")).unwrap();
    assert!(PagesReader::open(&set, dir.path(), Kind::Pagemap, 5).is_err());
}

#[test]
fn a_pages_file_that_is_too_short_is_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let mut set = Set::new();
    let mut writer = PagesWriter::create(dir.path(), 7).unwrap();
    writer.write(0x1000, &page(1), false).unwrap();
    writer.finish(&mut set, Kind::Pagemap, 5).unwrap();
    let file = std::fs::OpenOptions::new()
        .write(true)
        .open(dir.path().join("pages-7.img"))
        .unwrap();
    file.set_len(4095).unwrap();
    let error = PagesReader::open(&set, dir.path(), Kind::Pagemap, 5).unwrap_err();
    assert!(error.to_string().contains("pages-7.img"), "{error}");
    assert!(error.to_string().contains("4095 of 4096"), "{error}");
}

#[test]
fn an_abandoned_writer_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = PagesWriter::create(dir.path(), 7).unwrap();
    writer.write(0x1000, &page(1), false).unwrap();
    drop(writer);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

fn pagemap(entries: &[PagemapEntry]) -> Set {
    let mut set = Set::new();
    set.put(Kind::Pagemap, 5, &PagemapHead { pages_id: 1 });
    for entry in entries {
        set.push(Kind::Pagemap, 5, entry);
    }
    set
}

#[test]
fn older_entries_are_understood() {
    let set = pagemap(&[
        PagemapEntry {
            vaddr: 0x1000,
            compat_nr_pages: 2,
            ..Default::default()
        },
        PagemapEntry {
            vaddr: 0x3000,
            compat_nr_pages: 1,
            in_parent: Some(true),
            ..Default::default()
        },
        // As CRIU 4.2 writes it.
        PagemapEntry {
            vaddr: 0x8000,
            compat_nr_pages: 0,
            flags: Some(PE_PRESENT | PE_LAZY),
            nr_pages: Some(3),
            in_parent: None,
        },
    ]);
    let map = Pagemap::of(&set, Kind::Pagemap, 5).unwrap().unwrap();
    let seen: Vec<_> = map
        .runs()
        .iter()
        .map(|run| (run.range.start(), run.range.pages(), run.held(), run.offset))
        .collect();
    assert_eq!(
        seen,
        [
            (0x1000, 2, Held::Here, 0),
            (0x3000, 1, Held::Parent, 0x2000),
            (0x8000, 3, Held::Here, 0x2000),
        ]
    );
    assert_eq!(map.bytes_here(), 0x5000);
}

#[test]
fn a_pagemap_that_contradicts_itself_is_refused_by_name() {
    let entry = |vaddr, nr_pages| PagemapEntry {
        vaddr,
        nr_pages: Some(nr_pages),
        flags: Some(PE_PRESENT),
        ..Default::default()
    };
    for entries in [
        vec![entry(0x1000, 2), entry(0x2000, 1)],
        vec![entry(0x1001, 1)],
        vec![entry(0x1000, u64::MAX)],
        vec![entry(u64::MAX - 4095, 1)],
        vec![entry(0, 1 << 49), entry(1 << 61, 1 << 51)],
    ] {
        let set = pagemap(&entries);
        let error = Pagemap::of(&set, Kind::Pagemap, 5).unwrap_err();
        assert!(error.to_string().starts_with("pagemap-5.img"), "{error}");
    }
}

#[test]
fn a_truncated_pagemap_is_refused_by_name() {
    let set = pagemap(&[PagemapEntry {
        vaddr: 0x1000,
        compat_nr_pages: 2,
        ..Default::default()
    }]);
    let whole = set.raw("pagemap-5.img").unwrap();
    for len in 0..whole.len() {
        let result = Pagemap::decode(Kind::Pagemap, "pagemap-5.img", &whole[..len]);
        // Cut between two records it is a shorter pagemap; the sums notice that.
        if len == 14 {
            assert_eq!(result.unwrap().runs(), []);
            continue;
        }
        let error = result.unwrap_err();
        assert!(error.to_string().contains("pagemap-5.img"), "{error}");
    }
}
