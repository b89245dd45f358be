//! What a restorer sends to the process that will serve its pages.
#![no_main]

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileTypeExt;
use std::sync::LazyLock;
use std::time::Duration;

use dunlin::memory::handoff::Server;
use libfuzzer_sys::fuzz_target;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, connect, sendmsg, socket,
};

const PATIENCE: Duration = Duration::from_millis(200);

struct At {
    server: Server,
    address: UnixAddr,
    _dir: tempfile::TempDir,
}

static AT: LazyLock<At> = LazyLock::new(|| {
    let dir = tempfile::tempdir().expect("a directory");
    let server = Server::bind(dir.path()).expect("listen in it");
    let socket = std::fs::read_dir(dir.path())
        .expect("list it")
        .map(|e| e.expect("an entry"))
        .find(|e| e.file_type().expect("a type").is_socket())
        .expect("the socket");
    At {
        server,
        address: UnixAddr::new(&socket.path()).expect("a short path"),
        _dir: dir,
    }
});

// Messages one after the other: how many descriptors go along, the length of
// the message, the length of the record that is the last of them.
fuzz_target!(|data: &[u8]| {
    let line = socket(
        AddressFamily::Unix,
        SockType::SeqPacket,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    connect(line.as_raw_fd(), &AT.address).expect("connect");
    let send = |bytes: &[u8], rights: &[i32]| {
        let control = [ControlMessage::ScmRights(rights)];
        let control = if rights.is_empty() { &[][..] } else { &control };
        let io = [std::io::IoSlice::new(bytes)];
        let _ = sendmsg::<UnixAddr>(line.as_raw_fd(), &io, control, MsgFlags::MSG_DONTWAIT, None);
    };
    // half of all inputs begin as a restorer does
    let mut rest = match data.split_first() {
        Some((first, after)) if first % 2 == 0 => {
            send(br#"{"hello":{"version":1}}"#, &[]);
            after
        }
        _ => data,
    };
    while let Some((&[rights, len, record_low, record_high], after)) = rest.split_first_chunk() {
        let (message, after) = after.split_at(usize::from(len).min(after.len()));
        let len = usize::from(u16::from_le_bytes([record_low, record_high]));
        let (record, after) = after.split_at(len.min(after.len()));
        rest = after;
        let memfd = memfd_create(c"record", MFdFlags::MFD_CLOEXEC).expect("a memfd");
        let mut file = File::from(memfd);
        file.write_all(record).expect("fill it");
        let null = File::open("/dev/null").expect("open it");
        let mut fds = vec![null.as_fd().as_raw_fd(); usize::from(rights % 5)];
        if let Some(last) = fds.last_mut() {
            *last = file.as_raw_fd();
        }
        send(message, &fds);
    }
    let _ = nix::sys::socket::shutdown(line.as_raw_fd(), nix::sys::socket::Shutdown::Write);
    if let Ok(Some(session)) = AT.server.accept(Some(PATIENCE), PATIENCE) {
        let _ = session.receive();
    }
});
