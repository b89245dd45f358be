//! Open files: what a descriptor refers to, in one line.

use crate::base::Result;
use crate::image::records::{
    FdTypes, FdinfoEntry, FileEntry, InetSkEntry, MemfdInodeEntry, RemapFilePathEntry,
    TtyInfoEntry, TtyType, UnixSkEntry,
};
use crate::image::{Kind, Set};
use serde::Serialize;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// One descriptor of a task.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Descriptor {
    pub(super) fd: u32,
    pub(super) kind: &'static str,
    pub(super) name: String,
    /// Bytes, for what has a position.
    pub(super) position: Option<u64>,
    /// `O_*` in octal, as `/proc/PID/fdinfo` has it.
    pub(super) flags: String,
    pub(super) close_on_exec: bool,
    /// Id of the open file description, to see which are shared.
    pub(super) file: u32,
}

/// All files of an image by id.
#[derive(Debug)]
pub(super) struct Names {
    files: HashMap<u32, FileEntry>,
    memfds: HashMap<u32, String>,
    ttys: HashMap<u32, TtyInfoEntry>,
    nameless: HashMap<u32, u32>,
}

impl Names {
    pub(super) fn of(set: &Set) -> Result<Self> {
        let files: Vec<FileEntry> = set.all(Kind::Files, 0)?;
        let memfds: Vec<MemfdInodeEntry> = set.all(Kind::Memfd, 0)?;
        let ttys: Vec<TtyInfoEntry> = set.all(Kind::TtyInfo, 0)?;
        let remaps: Vec<RemapFilePathEntry> = set.all(Kind::RemapFpath, 0)?;
        let memfd_name = |inode: MemfdInodeEntry| {
            let id = u32::try_from(inode.inode_id).ok()?;
            Some((id, inode.name))
        };
        Ok(Self {
            files: files.into_iter().map(|file| (file.id, file)).collect(),
            memfds: memfds.into_iter().filter_map(memfd_name).collect(),
            ttys: ttys.into_iter().map(|tty| (tty.id, tty)).collect(),
            nameless: remaps
                .into_iter()
                .map(|remap| (remap.orig_id, remap.remap_id))
                .collect(),
        })
    }

    /// The path of a file, or what it is.
    pub(super) fn path(&self, id: u32) -> String {
        match self.files.get(&id) {
            Some(file) => self.describe(file).1,
            None => format!("file {id:#x}, which is not in the image"),
        }
    }

    /// Kind and one line of text.
    fn describe(&self, file: &FileEntry) -> (&'static str, String) {
        let kind = FdTypes::try_from(file.r#type);
        let text = self.text(file);
        match kind {
            Ok(kind) => (label(kind), text.unwrap_or_default()),
            Err(_) => ("unknown", format!("type {}", file.r#type)),
        }
    }

    fn text(&self, file: &FileEntry) -> Option<String> {
        Some(match FdTypes::try_from(file.r#type).ok()? {
            FdTypes::Reg => self.reg(file)?,
            FdTypes::Pipe => format!("pipe {:#x}", file.pipe.as_ref()?.pipe_id),
            FdTypes::Fifo => {
                let fifo = file.fifo.as_ref()?;
                match fifo.regf_id {
                    Some(id) if id != file.id => self.path(id),
                    _ => format!("pipe {:#x}", fifo.pipe_id),
                }
            }
            FdTypes::Inetsk => inet(file.isk.as_ref()?),
            FdTypes::Unixsk => unix(file.usk.as_ref()?),
            FdTypes::Eventfd => format!("counter {}", file.efd.as_ref()?.counter),
            FdTypes::Eventpoll => {
                let members = &file.epfd.as_ref()?.tfd;
                let fds: Vec<_> = members.iter().map(|m| m.tfd.to_string()).collect();
                format!("watches [{}]", fds.join(", "))
            }
            FdTypes::Inotify => format!("{} watches", file.ify.as_ref()?.wd.len()),
            FdTypes::Fanotify => format!("{} marks", file.ffy.as_ref()?.mark.len()),
            FdTypes::Signalfd => format!("signals {:#x}", file.sgfd.as_ref()?.sigmask),
            FdTypes::Timerfd => {
                let timer = file.tfd.as_ref()?;
                format!(
                    "clock {}, in {}.{:09} s, every {}.{:09} s",
                    timer.clockid, timer.vsec, timer.vnsec, timer.isec, timer.insec
                )
            }
            FdTypes::Packetsk => format!("protocol {:#x}", file.psk.as_ref()?.protocol),
            FdTypes::Netlinksk => {
                let socket = file.nlsk.as_ref()?;
                format!("protocol {}, port {}", socket.protocol, socket.portid)
            }
            FdTypes::Tty => self.tty(file.tty.as_ref()?.tty_info_id),
            FdTypes::Ns => format!("namespace {}", file.nsf.as_ref()?.ns_id),
            FdTypes::Tunf => file.tunf.as_ref()?.netdev.clone().unwrap_or_default(),
            FdTypes::Ext => String::from("given by the caller"),
            FdTypes::Memfd => {
                let inode = file.memfd.as_ref()?.inode_id;
                self.memfds
                    .get(&inode)
                    .cloned()
                    .unwrap_or_else(|| format!("inode {inode}"))
            }
            FdTypes::Bpfmap => file.bpf.as_ref()?.map_name.clone(),
            FdTypes::Pidfd => format!("pid {}", file.pidfd.as_ref()?.nspid),
            FdTypes::Und => return None,
        })
    }

    fn reg(&self, file: &FileEntry) -> Option<String> {
        let reg = file.reg.as_ref()?;
        Some(match self.nameless.get(&file.id) {
            Some(_) if !reg.name.ends_with("(deleted)") => format!("{} (deleted)", reg.name),
            _ => reg.name.clone(),
        })
    }

    fn tty(&self, id: u32) -> String {
        let Some(tty) = self.ttys.get(&id) else {
            return format!("terminal {id:#x}");
        };
        match TtyType::try_from(tty.r#type) {
            Ok(TtyType::Pty) => format!("pts {}", tty.pty.as_ref().map_or(0, |pty| pty.index)),
            Ok(TtyType::Console) => String::from("console"),
            Ok(TtyType::Vt) => String::from("virtual terminal"),
            Ok(TtyType::Ctty) => String::from("controlling terminal"),
            Ok(TtyType::ExtTty) => String::from("terminal given by the caller"),
            Ok(TtyType::Serial) => String::from("serial line"),
            Ok(TtyType::Unknown) | Err(_) => String::from("terminal"),
        }
    }
}

/// The descriptors of a task, by number.
pub(super) fn descriptors(set: &Set, names: &Names, files_id: u32) -> Result<Vec<Descriptor>> {
    let mut found = Vec::new();
    for fd in set.all::<FdinfoEntry>(Kind::Fdinfo, files_id)? {
        let (kind, name, position, flags) = match names.files.get(&fd.id) {
            Some(file) => {
                let (kind, name) = names.describe(file);
                (kind, name, position(file), flags(file).unwrap_or_default())
            }
            None => ("missing", names.path(fd.id), None, 0),
        };
        found.push(Descriptor {
            fd: fd.fd,
            kind,
            name,
            position,
            flags: format!("{flags:#o}"),
            close_on_exec: fd.flags & 1 != 0,
            file: fd.id,
        });
    }
    found.sort_by_key(|descriptor| descriptor.fd);
    Ok(found)
}

fn label(kind: FdTypes) -> &'static str {
    match kind {
        FdTypes::Und => "undefined",
        FdTypes::Reg => "file",
        FdTypes::Pipe => "pipe",
        FdTypes::Fifo => "fifo",
        FdTypes::Inetsk => "inet",
        FdTypes::Unixsk => "unix",
        FdTypes::Eventfd => "eventfd",
        FdTypes::Eventpoll => "epoll",
        FdTypes::Inotify => "inotify",
        FdTypes::Signalfd => "signalfd",
        FdTypes::Packetsk => "packet",
        FdTypes::Tty => "tty",
        FdTypes::Fanotify => "fanotify",
        FdTypes::Netlinksk => "netlink",
        FdTypes::Ns => "namespace",
        FdTypes::Tunf => "tun",
        FdTypes::Ext => "external",
        FdTypes::Timerfd => "timerfd",
        FdTypes::Memfd => "memfd",
        FdTypes::Bpfmap => "bpf map",
        FdTypes::Pidfd => "pidfd",
    }
}

fn position(file: &FileEntry) -> Option<u64> {
    let memfd = file.memfd.as_ref().map(|memfd| memfd.pos);
    file.reg.as_ref().map(|reg| reg.pos).or(memfd)
}

fn flags(file: &FileEntry) -> Option<u32> {
    let reg = file.reg.as_ref().map(|f| f.flags);
    reg.or_else(|| file.isk.as_ref().map(|f| f.flags))
        .or_else(|| file.nsf.as_ref().map(|f| f.flags))
        .or_else(|| file.psk.as_ref().map(|f| f.flags))
        .or_else(|| file.nlsk.as_ref().map(|f| f.flags))
        .or_else(|| file.efd.as_ref().map(|f| f.flags))
        .or_else(|| file.epfd.as_ref().map(|f| f.flags))
        .or_else(|| file.sgfd.as_ref().map(|f| f.flags))
        .or_else(|| file.tfd.as_ref().map(|f| f.flags))
        .or_else(|| file.ify.as_ref().map(|f| f.flags))
        .or_else(|| file.ffy.as_ref().map(|f| f.flags))
        .or_else(|| file.usk.as_ref().map(|f| f.flags))
        .or_else(|| file.pipe.as_ref().map(|f| f.flags))
        .or_else(|| file.tty.as_ref().map(|f| f.flags))
        .or_else(|| file.memfd.as_ref().map(|f| f.flags))
        .or_else(|| file.bpf.as_ref().map(|f| f.flags))
        .or_else(|| file.pidfd.as_ref().map(|f| f.flags))
}

fn inet(socket: &InetSkEntry) -> String {
    let protocol = match socket.proto {
        6 => String::from("tcp"),
        17 => String::from("udp"),
        other => format!("protocol {other}"),
    };
    let state = match (socket.proto, socket.state) {
        (6, 1) => " established",
        (6, 10) => " listens",
        _ => "",
    };
    let from = address(&socket.src_addr, socket.src_port);
    let peer = if socket.dst_port == 0 {
        String::new()
    } else {
        format!(" to {}", address(&socket.dst_addr, socket.dst_port))
    };
    format!("{protocol} {from}{peer}{state}")
}

/// Words are in network order.
fn address(words: &[u32], port: u32) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let ip = if let Ok(v4) = <[u8; 4]>::try_from(bytes.as_slice()) {
        IpAddr::V4(Ipv4Addr::from(v4))
    } else if let Ok(v6) = <[u8; 16]>::try_from(bytes.as_slice()) {
        IpAddr::V6(Ipv6Addr::from(v6))
    } else {
        return format!("?:{port}");
    };
    match ip {
        IpAddr::V4(ip) => format!("{ip}:{port}"),
        IpAddr::V6(ip) => format!("[{ip}]:{port}"),
    }
}

fn unix(socket: &UnixSkEntry) -> String {
    let kind = match socket.r#type {
        1 => "stream",
        2 => "datagram",
        5 => "seqpacket",
        _ => "unknown",
    };
    let name = match socket.name.split_first() {
        None => String::new(),
        Some((0, name)) => format!(" @{}", String::from_utf8_lossy(name)),
        Some(_) => format!(
            " {}",
            String::from_utf8_lossy(&socket.name).trim_end_matches('\0')
        ),
    };
    let state = if socket.state == 10 { " listens" } else { "" };
    let peer = match socket.peer {
        0 => String::new(),
        peer => format!(" peer {peer:#x}"),
    };
    format!("{kind} {:#x}{name}{peer}{state}", socket.ino)
}
