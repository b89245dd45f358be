use super::message::{Line, Message};
use super::*;
use crate::base::{HostPid, PAGE_SIZE, PageRange, Result};
use crate::memory::{
    Direct, Filler, Handler, LazySpace, Object, OnLoss, PageReader, SpaceId, fill, testing,
};
use crate::sys::seqpacket;
use crate::sys::testing::Child;
use std::sync::Arc;
use std::time::Duration;

const LONG: Duration = Duration::from_secs(20);

struct Sevens;

impl PageReader for Sevens {
    fn read(&self, _: Object, _: u64, buf: &mut [u8]) -> Result<()> {
        buf.fill(7);
        Ok(())
    }
}

fn lazy(child: &Child) -> (LazySpace, PageRange) {
    testing::lazy(child, SpaceId(5), 64)
}

#[test]
fn an_address_space_is_handed_over_and_served_by_the_other_side() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(dir.path()).unwrap();
    let child = Child::fork();
    let (space, range) = lazy(&child);
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut client = Client::connect(dir.path(), LONG).unwrap();
            client.images(LONG).unwrap();
            client.space(&space).unwrap();
            client.ready(child.pid(), LONG).unwrap();
            drop(space);
            // The task goes on, and needs memory at once.
            assert_eq!(child.sum(range.start(), PAGE_SIZE), 7 * PAGE_SIZE);
            client.resumed().unwrap();
        });
        let session = server.accept(Some(LONG), LONG).unwrap().unwrap();
        let (job, ready) = session.receive().unwrap();
        assert_eq!(ready.root(), child.pid());
        let filler = Filler::new(job).unwrap();
        let handler =
            Handler::start(filler, Arc::new(Direct(Sevens)), Box::new(|_| OnLoss::Kill)).unwrap();
        ready.grant().unwrap();
        fill::fill_all(&handler.sink(), &Sevens, 1).unwrap();
        assert_eq!(handler.wait().unwrap().count.present, 64);
    });
    assert_eq!(child.sum(range.start(), range.len()), 7 * range.len());
    drop(server);
    assert!(!socket_in(dir.path()).exists());
}

#[test]
fn an_abort_a_death_and_a_long_silence_all_mean_that_nothing_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(dir.path()).unwrap();
    for how in ["abort", "die", "silence"] {
        let text = std::thread::scope(|s| {
            let restorer = s.spawn(|| {
                let mut client = Client::connect(dir.path(), LONG).unwrap();
                client.images(LONG).unwrap();
                let patience = if how == "silence" {
                    Duration::from_millis(50)
                } else {
                    LONG
                };
                client.ready(HostPid(1), patience).unwrap_err().to_string()
            });
            let session = server.accept(Some(LONG), LONG).unwrap().unwrap();
            let (_, ready) = session.receive().unwrap();
            match how {
                "abort" => ready.abort("the source went on").unwrap(),
                "die" => drop(ready),
                _ => return restorer.join().unwrap(),
            }
            restorer.join().unwrap()
        });
        let expect = match how {
            "abort" => "the source went on",
            "die" => "hung up",
            _ => "timed out",
        };
        assert!(text.contains(expect), "{how}: {text}");
    }
    assert!(server.accept(Some(Duration::ZERO), LONG).unwrap().is_none());
}

#[test]
fn hostile_messages_are_refused_by_name() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(dir.path()).unwrap();
    let hello = format!("{{\"hello\":{{\"version\":{VERSION}}}}}");
    let hello = hello.as_bytes();
    let cases: [(&[&[u8]], &str); 6] = [
        (&[b"{\"hello\":{\"version\":9}}"], "version 9"),
        (&[b"nonsense"], "malformed"),
        (&[b"\"grant\""], "in place of HELLO"),
        (
            &[hello, b"{\"space\":{\"id\":1,\"pid\":1}}"],
            "0 descriptors",
        ),
        (&[hello, &[b' '; 5000]], "too long"),
        (
            &[hello, b"{\"ready\":{\"root\":1,\"spaces\":4,\"shared\":0}}"],
            "counts do not fit",
        ),
    ];
    for (messages, expect) in cases {
        let client = seqpacket::connect_to(&socket_in(dir.path())).unwrap();
        for m in messages {
            crate::sys::socket::send(std::os::fd::AsFd::as_fd(&client), m, &[]).unwrap();
        }
        let e = server
            .accept(Some(LONG), LONG)
            .and_then(|s| s.unwrap().receive())
            .unwrap_err()
            .to_string();
        assert!(e.contains(expect), "{expect}: {e}");
    }
}

#[test]
fn a_record_that_lies_about_pages_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::bind(dir.path()).unwrap();
    let line = Line::new(seqpacket::connect_to(&socket_in(dir.path())).unwrap(), LONG);
    line.send(&Message::Hello { version: VERSION }, &[])
        .unwrap();
    let object = std::fs::File::open("/dev/null").unwrap();
    let rights = [std::os::fd::AsFd::as_fd(&object)];
    line.send_record(&Message::Shared { id: 3 }, &rights, &[(4096u64, 5000u64)])
        .unwrap();
    let e = server
        .accept(Some(LONG), LONG)
        .and_then(|s| s.unwrap().receive())
        .unwrap_err();
    assert_eq!(
        e.to_string(),
        "lazy-pages record: 0x1000-0x1388 is no range of pages"
    );
}
