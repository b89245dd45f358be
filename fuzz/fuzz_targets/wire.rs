//! What a peer sends: frames, the order of them, messages, batches of pages.
#![no_main]

use dunlin::wire::batch::{self, Batch};
use dunlin::wire::frame::{self, Frame, HEADER, Kind};
use dunlin::wire::message::{self as m, Lane};
use dunlin::wire::ranges;
use dunlin::wire::secret::{Side, Token};
use dunlin::wire::session::Session;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // whatever a stranger sends: what is taken makes progress
    let mut rest = data;
    while let Ok(Some((frame, used))) = frame::decode(rest) {
        assert_eq!(used, HEADER + frame.body.len());
        rest = &rest[used..];
        judge(&frame);
    }
    // frames with right sums, in any order
    let mut ends = [Session::new(Side::Source), Session::new(Side::Receiver)];
    let mut rest = data;
    while let Some((&[kind, low, high], after)) = rest.split_first_chunk() {
        let kind = Kind::ALL[usize::from(kind) % Kind::ALL.len()];
        let len = usize::from(u16::from_le_bytes([low, high])).min(after.len());
        let (body, after) = after.split_at(len);
        rest = after;
        let Ok(bytes) = frame::encode(kind, body) else {
            assert!(body.len() > kind.limit());
            continue;
        };
        let (frame, used) = frame::decode(&bytes).expect("ours").expect("whole");
        assert_eq!(
            (frame.kind, frame.body.as_slice(), used),
            (kind, body, bytes.len())
        );
        for end in &mut ends {
            let before = end.state();
            if end.received(kind).is_err() {
                assert_eq!(end.state(), before, "a refused frame moves nothing");
            }
        }
        judge(&frame);
    }
    if let Ok(text) = std::str::from_utf8(data)
        && let Ok(token) = Token::from_text(text)
    {
        Token::from_text(&token.to_text()).expect("what it says it reads");
    }
});

/// Every message, from every body.
fn judge(frame: &Frame) {
    let (kind, body) = (frame.kind, frame.body.as_slice());
    macro_rules! each {
        ($($message:ident),*) => {$(
            if let Ok(message) = m::parse::<m::$message>(kind, body) {
                let bytes = prost::Message::encode_to_vec(&message);
                assert_eq!(m::parse::<m::$message>(kind, &bytes).expect("ours"), message);
            }
        )*};
    }
    each!(
        Challenge, Proof, Offer, Reasons, Entry, Xattr, Remove, Image, StateEnd, Step, Fault,
        Missing, Absent
    );
    if let Ok(hello) = m::parse::<m::Hello>(kind, body)
        && let Ok(lane) = Lane::from_number(hello.lane)
    {
        assert_eq!(lane.number(), hello.lane);
    }
    if let Ok(m) = m::parse::<m::Absent>(kind, body)
        && let Ok((_, list)) = ranges::read(m.sort, m.id, &m.starts, &m.pages)
    {
        assert!(list.len() == m.starts.len() && list.len() <= ranges::MOST);
    }
    if let Ok(batch) = Batch::parse(body.to_vec()) {
        assert!(batch.runs.len() <= batch::MAX_RUNS && batch.pages() <= batch::MAX_PAGES);
        let mut bytes = 0;
        for run in &batch.runs {
            assert!(!run.range.is_empty());
            if let Some(content) = batch.content(run) {
                assert_eq!(content.len() as u64, run.range.len());
                bytes += content.len();
            }
        }
        assert!(bytes <= body.len());
    }
}
