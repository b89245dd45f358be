//! The types of image files: how they are named, which magic they begin with,
//! and how their records lie in them.

use super::records::{self, Record};
use crate::base::Result;
use std::fmt;

/// Decodes a record of one type, to see that it can be.
pub(super) type Check = fn(&super::frame::Reader<'_>, &[u8]) -> Result<()>;

fn check<T: Record>(reader: &super::frame::Reader<'_>, bytes: &[u8]) -> Result<()> {
    reader.decode::<T>(bytes).map(drop)
}

/// First word of all files but the inventory, the service files and raw ones.
pub(super) const COMMON_MAGIC: u32 = 0x5456_4319;
/// First word of service files (statistics, caches).
pub(super) const SERVICE_MAGIC: u32 = 0x5510_5940;

/// How a file begins (all words little endian).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Magic {
    /// Only its own word: the inventory.
    Own(u32),
    /// The common word, then its own.
    Common(u32),
    /// The service word, then its own.
    Service(u32),
    /// None: the content is not records.
    Raw,
}

/// How the number in a file name is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdForm {
    /// There is one such file; its id is 0.
    None,
    /// Decimal.
    Decimal,
    /// Hexadecimal, lower case.
    Hex,
}

/// How records lie in a file.
#[derive(Debug, Clone, Copy)]
pub(super) enum Layout {
    /// Length, record; repeated.
    Records(Check),
    /// As `Records`, each followed by bytes that its record tells the length of.
    Payload(Check),
    /// A pagemap head, then pagemap entries.
    Pagemap,
    /// One record; the rest of the file is content or chunks.
    Ghost,
    /// Not records.
    Raw,
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $stem:literal $id:ident $suffix:literal $magic:ident $(($word:literal))? $layout:ident $(($record:ident))?;)*) => {
        /// A type of image file.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Kind {
            $($(#[$doc])* $variant,)*
        }

        impl Kind {
            /// All types.
            pub const ALL: &[Kind] = &[$(Kind::$variant,)*];

            fn spec(self) -> Spec {
                match self {
                    $(Kind::$variant => Spec {
                        stem: $stem,
                        id: IdForm::$id,
                        suffix: $suffix,
                        magic: Magic::$magic $(($word))?,
                        layout: Layout::$layout $((check::<records::$record>))?,
                    },)*
                }
            }
        }
    };
}

struct Spec {
    stem: &'static str,
    id: IdForm,
    suffix: &'static str,
    magic: Magic,
    layout: Layout,
}

kinds! {
    /// The head of the image.
    Inventory "inventory" None ".img" Own(0x5831_3116) Records(InventoryEntry);
    /// The tree of tasks.
    Pstree "pstree" None ".img" Common(0x5027_3030) Records(PstreeEntry);
    /// A thread, by its thread id.
    Core "core-" Decimal ".img" Common(0x5505_3847) Records(CoreEntry);
    /// Which kernel objects a task shares, by pid.
    Ids "ids-" Decimal ".img" Common(0x5443_2030) Records(TaskKobjIdsEntry);
    /// An address space with its areas, by pid.
    Mm "mm-" Decimal ".img" Common(0x5749_2820) Records(MmEntry);
    /// Areas alone, by pid (old images).
    Vmas "vmas-" Decimal ".img" Common(0x5412_3737) Records(VmaEntry);
    /// Which pages a task has, by pid.
    Pagemap "pagemap-" Decimal ".img" Common(0x5608_4025) Pagemap;
    /// Which pages a shared memory has, by its number.
    PagemapShmem "pagemap-shmem-" Decimal ".img" Common(0x5608_4025) Pagemap;
    /// Contents of pages, by the number that a pagemap names.
    Pages "pages-" Decimal ".img" Raw Raw;
    /// All open file descriptions.
    Files "files" None ".img" Common(0x5630_3138) Records(FileEntry);
    /// Descriptors of a task, by its `files_id`.
    Fdinfo "fdinfo-" Decimal ".img" Common(0x5621_3732) Records(FdinfoEntry);
    /// Working directory, root, umask, by pid.
    Fs "fs-" Decimal ".img" Common(0x5140_3912) Records(FsEntry);
    /// Credentials, by pid (old images).
    Creds "creds-" Decimal ".img" Common(0x5402_3547) Records(CredsEntry);
    /// Signal actions, by pid (old images).
    Sigacts "sigacts-" Decimal ".img" Common(0x5534_4201) Records(SaEntry);
    /// Interval timers, by pid (old images).
    Itimers "itimers-" Decimal ".img" Common(0x5746_4056) Records(ItimerEntry);
    /// POSIX timers, by pid (old images).
    PosixTimers "posix-timers-" Decimal ".img" Common(0x5260_3957) Records(PosixTimerEntry);
    /// Resource limits, by pid (old images).
    Rlimit "rlimit-" Decimal ".img" Common(0x5711_3925) Records(RlimitEntry);
    /// Pending signals of a process, by pid (old images).
    SignalShared "signal-s-" Decimal ".img" Common(0x5925_5647) Records(SiginfoEntry);
    /// Pending signals of a thread, by thread id (old images).
    SignalPrivate "signal-p-" Decimal ".img" Common(0x5925_5647) Records(SiginfoEntry);
    /// Regular files (old images).
    RegFiles "reg-files" None ".img" Common(0x5036_3636) Records(RegFileEntry);
    /// Files that the caller provides (old images).
    ExtFiles "ext-files" None ".img" Common(0x5925_5641) Records(ExtFileEntry);
    /// Namespace files (old images).
    NsFiles "ns-files" None ".img" Common(0x6139_4011) Records(NsFileEntry);
    /// Event counters (old images).
    Eventfd "eventfd" None ".img" Common(0x4452_3722) Records(EventfdFileEntry);
    /// Epoll sets (old images).
    Eventpoll "eventpoll" None ".img" Common(0x4502_3858) Records(EventpollFileEntry);
    /// Members of epoll sets (old images).
    EventpollTfd "eventpoll-tfd" None ".img" Common(0x4443_3746) Records(EventpollTfdEntry);
    /// Signal descriptors (old images).
    Signalfd "signalfd" None ".img" Common(0x5732_3820) Records(SignalfdEntry);
    /// Timer descriptors (old images).
    Timerfd "timerfd" None ".img" Common(0x5049_3712) Records(TimerfdEntry);
    /// inotify groups (old images).
    Inotify "inotify" None ".img" Common(0x4842_4431) Records(InotifyFileEntry);
    /// inotify watches (old images).
    InotifyWd "inotify-wd" None ".img" Common(0x5456_2009) Records(InotifyWdEntry);
    /// fanotify groups (old images).
    Fanotify "fanotify" None ".img" Common(0x5509_6122) Records(FanotifyFileEntry);
    /// fanotify marks (old images).
    FanotifyMark "fanotify-mark" None ".img" Common(0x5650_6035) Records(FanotifyMarkEntry);
    /// Pipes (old images).
    Pipes "pipes" None ".img" Common(0x5651_3555) Records(PipeEntry);
    /// FIFOs (old images).
    Fifo "fifo" None ".img" Common(0x5836_4939) Records(FifoEntry);
    /// Unix sockets (old images).
    Unixsk "unixsk" None ".img" Common(0x5437_3943) Records(UnixSkEntry);
    /// Internet sockets (old images).
    Inetsk "inetsk" None ".img" Common(0x5644_3851) Records(InetSkEntry);
    /// Packet sockets (old images).
    Packetsk "packetsk" None ".img" Common(0x6045_4618) Records(PacketSockEntry);
    /// Netlink sockets (old images).
    Netlinksk "netlinksk" None ".img" Common(0x5800_5614) Records(NetlinkSkEntry);
    /// Terminals (old images).
    Tty "tty" None ".img" Common(0x5943_3025) Records(TtyFileEntry);
    /// Tun devices (old images).
    Tunfile "tunfile" None ".img" Common(0x5714_3751) Records(TunfileEntry);
    /// Process descriptors (old images).
    Pidfd "pidfd" None ".img" Common(0x5443_5556) Records(PidfdEntry);
    /// Content of pipes.
    PipesData "pipes-data" None ".img" Common(0x5645_3709) Payload(PipeDataEntry);
    /// Content of FIFOs.
    FifoData "fifo-data" None ".img" Common(0x5933_3054) Payload(PipeDataEntry);
    /// Messages that wait in sockets.
    SkQueues "sk-queues" None ".img" Common(0x5626_4026) Payload(SkPacketEntry);
    /// A TCP connection with its queues, by the inode of the socket.
    TcpStream "tcp-stream-" Hex ".img" Common(0x5146_5506) Payload(TcpStreamEntry);
    /// State of terminals.
    TtyInfo "tty-info" None ".img" Common(0x5945_3036) Records(TtyInfoEntry);
    /// Bytes that wait in terminals.
    TtyData "tty-data" None ".img" Common(0x5941_3026) Records(TtyDataEntry);
    /// Files that have lost their names.
    RemapFpath "remap-fpath" None ".img" Common(0x5913_3954) Records(RemapFilePathEntry);
    /// An inode without a name, by its own number.
    GhostFile "ghost-file-" Hex ".img" Common(0x5258_3605) Ghost;
    /// Inodes of memfds.
    Memfd "memfd" None ".img" Common(0x4845_3499) Records(MemfdInodeEntry);
    /// BPF maps.
    BpfmapFile "bpfmap-file" None ".img" Common(0x5750_6142) Records(BpfmapFileEntry);
    /// Content of BPF maps.
    BpfmapData "bpfmap-data" None ".img" Common(0x6432_4033) Payload(BpfmapDataEntry);
    /// File locks.
    Filelocks "filelocks" None ".img" Common(0x5432_3616) Records(FileLockEntry);
    /// Control groups.
    Cgroup "cgroup" None ".img" Common(0x5938_3330) Records(CgroupEntry);
    /// Seccomp filters.
    Seccomp "seccomp" None ".img" Common(0x6441_3049) Records(SeccompEntry);
    /// AppArmor policies.
    Apparmor "apparmor" None ".img" Common(0x5942_3047) Records(ApparmorEntry);
    /// Mounts, by the id of the mount namespace.
    Mountpoints "mountpoints-" Decimal ".img" Common(0x5556_3928) Records(MntEntry);
    /// Host names, by the id of the UTS namespace.
    Utsns "utsns-" Decimal ".img" Common(0x5447_3203) Records(UtsnsEntry);
    /// IPC limits, by the id of the IPC namespace.
    IpcnsVar "ipcns-var-" Decimal ".img" Common(0x5311_5007) Records(IpcVarEntry);
    /// System V shared memory, by the id of the IPC namespace.
    IpcnsShm "ipcns-shm-" Decimal ".img" Common(0x4628_3044) Payload(IpcShmEntry);
    /// System V message queues, by the id of the IPC namespace.
    IpcnsMsg "ipcns-msg-" Decimal ".img" Common(0x5545_3737) Payload(IpcMsgEntry);
    /// System V semaphores, by the id of the IPC namespace.
    IpcnsSem "ipcns-sem-" Decimal ".img" Common(0x5957_3019) Payload(IpcSemEntry);
    /// Id mappings, by the id of the user namespace.
    Userns "userns-" Decimal ".img" Common(0x5547_4906) Records(UsernsEntry);
    /// Clocks, by the id of the time namespace.
    Timens "timens-" Decimal ".img" Common(0x4311_4433) Records(TimensEntry);
    /// A pid namespace from outside, by its id.
    Pidns "pidns-" Decimal ".img" Common(0x6115_7326) Records(PidnsEntry);
    /// Network settings, by the id of the network namespace.
    Netns "netns-" Decimal ".img" Common(0x5593_3752) Records(NetnsEntry);
    /// Network devices, by the id of the network namespace.
    Netdev "netdev-" Decimal ".img" Common(0x5737_3951) Records(NetDeviceEntry);
    /// Addresses, as `ip addr save` writes them, by the id of the network namespace.
    Ifaddr "ifaddr-" Decimal ".img" Raw Raw;
    /// Routes, as `ip route save` writes them.
    Route "route-" Decimal ".img" Raw Raw;
    /// IPv6 routes, as `ip -6 route save` writes them.
    Route6 "route6-" Decimal ".img" Raw Raw;
    /// Routing rules, as `ip rule save` writes them.
    Rule "rule-" Decimal ".img" Raw Raw;
    /// Packet filter, as `iptables-save` writes it.
    Iptables "iptables-" Decimal ".img" Raw Raw;
    /// Packet filter, as `ip6tables-save` writes it.
    Ip6tables "ip6tables-" Decimal ".img" Raw Raw;
    /// Packet filter, as `nft list ruleset` writes it.
    Nftables "nftables-" Decimal ".img" Raw Raw;
    /// Connection tracking entries.
    NetnsCt "netns-ct-" Decimal ".img" Raw Raw;
    /// Connection tracking expectations.
    NetnsExp "netns-exp-" Decimal ".img" Raw Raw;
    /// Content of a tmpfs, by mount id (old images).
    Tmpfs "tmpfs-" Decimal ".tar.gz.img" Raw Raw;
    /// Content of a tmpfs, by its device number.
    TmpfsDev "tmpfs-dev-" Decimal ".tar.gz.img" Raw Raw;
    /// autofs mounts, by mount id.
    Autofs "autofs-" Decimal ".img" Common(0x4935_3943) Records(AutofsEntry);
    /// Binary formats.
    BinfmtMisc "binfmt-misc" None ".img" Common(0x6734_3323) Records(BinfmtMiscEntry);
    /// Sums of the other files, to notice damage. Ours: CRIU does not know it.
    DunlinManifest "dunlin-manifest" None ".img" Own(0x4455_4e4c) Records(ManifestEntry);
    /// Credentials of the peers of Unix sockets. Ours.
    DunlinPeers "dunlin-peers" None ".img" Own(0x4455_5043) Records(PeerCredEntry);
    /// Processors of the machine that made the image.
    Cpuinfo "cpuinfo" None ".img" Common(0x6140_4013) Records(CpuinfoEntry);
    /// Figures of the dump.
    StatsDump "stats-dump" None "" Service(0x5709_3306) Records(StatsEntry);
    /// Figures of the restore.
    StatsRestore "stats-restore" None "" Service(0x5709_3306) Records(StatsEntry);
    /// Where watched inodes were found.
    IrmapCache "irmap-cache" None "" Service(0x5700_4059) Records(IrmapCacheEntry);
}

impl Kind {
    /// How its files begin.
    pub fn magic(self) -> Magic {
        self.spec().magic
    }

    /// How the number in its file names is written.
    pub fn id_form(self) -> IdForm {
        self.spec().id
    }

    pub(super) fn layout(self) -> Layout {
        self.spec().layout
    }

    /// The file name for this id; a type of which there is one file ignores it.
    pub fn file_name(self, id: u32) -> String {
        let Spec {
            stem,
            id: form,
            suffix,
            ..
        } = self.spec();
        match form {
            IdForm::None => format!("{stem}{suffix}"),
            IdForm::Decimal => format!("{stem}{id}{suffix}"),
            IdForm::Hex => format!("{stem}{id:x}{suffix}"),
        }
    }

    /// Type and id that a file of this name has, if it is one of CRIU's.
    ///
    /// Only the one spelling that [`Kind::file_name`] gives is known: `core-01.img`
    /// is no image.
    pub fn of_file_name(name: &str) -> Option<(Kind, u32)> {
        Kind::ALL.iter().find_map(|&kind| {
            let spec = kind.spec();
            let digits = name.strip_prefix(spec.stem)?.strip_suffix(spec.suffix)?;
            let id = match spec.id {
                IdForm::None => return digits.is_empty().then_some((kind, 0)),
                IdForm::Decimal => digits.parse().ok()?,
                IdForm::Hex => u32::from_str_radix(digits, 16).ok()?,
            };
            (kind.file_name(id) == name).then_some((kind, id))
        })
    }

    /// The bytes that a file of this type begins with.
    pub(super) fn head(self) -> Vec<u8> {
        let words: &[u32] = match self.magic() {
            Magic::Own(own) => &[own],
            Magic::Common(own) => &[COMMON_MAGIC, own],
            Magic::Service(own) => &[SERVICE_MAGIC, own],
            Magic::Raw => &[],
        };
        words.iter().flat_map(|w| w.to_le_bytes()).collect()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let spec = self.spec();
        f.write_str(spec.stem.trim_end_matches('-'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_name_leads_back_to_its_kind_and_id() {
        let mut names = HashSet::new();
        for &kind in Kind::ALL {
            for id in [0, 1, 10, 0xabc, u32::MAX] {
                let name = kind.file_name(id);
                let id = if kind.id_form() == IdForm::None {
                    0
                } else {
                    id
                };
                assert_eq!(Kind::of_file_name(&name), Some((kind, id)), "{name}");
                names.insert((name, kind));
            }
        }
        let distinct: HashSet<_> = names.iter().map(|(n, _)| n).collect();
        assert_eq!(distinct.len(), names.len(), "two kinds share a name");
    }

    #[test]
    fn other_spellings_are_not_known() {
        for name in [
            "core-01.img",
            "core-+1.img",
            "core-.img",
            "core-4294967296.img",
            "ghost-file-A.img",
            "core-1.img.tmp",
            "",
            "dump.log",
        ] {
            assert_eq!(Kind::of_file_name(name), None, "{name}");
        }
    }
}
