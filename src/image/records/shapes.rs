//! Which fields of each record are required, and which are records themselves.

use super::wanted::{Check, Record, check};
use super::*;

macro_rules! shapes {
    ($($path:path: [$($required:literal)*] $(($tag:literal $nested:path))*;)*) => {$(
        impl Record for $path {
            const REQUIRED: &'static [u32] = &[$($required),*];

            fn nested(tag: u32) -> Option<Check> {
                match tag {
                    $($tag => Some(check::<$nested>),)*
                    _ => None,
                }
            }
        }
    )*};
}

shapes! {
    PluginsEntry: [];
    InventoryEntry: [1] (3 TaskKobjIdsEntry) (12 PluginsEntry);
    PstreeEntry: [1 2 3 4];
    TaskCoreEntry: [1 2 3 4 5 6] (7 TaskTimersEntry) (8 TaskRlimitsEntry) (10 SignalQueueEntry) (15 SaEntry);
    TaskKobjIdsEntry: [1 2 3 4];
    ThreadSasEntry: [1 2 3];
    ThreadCoreEntry: [1 2] (7 ThreadSasEntry) (9 SignalQueueEntry) (10 CredsEntry) (15 RseqEntry);
    TaskRlimitsEntry: [] (1 RlimitEntry);
    CoreEntry: [1] (2 ThreadInfoX86) (3 TaskCoreEntry) (4 TaskKobjIdsEntry) (5 ThreadCoreEntry);
    RlimitEntry: [1 2];
    RseqEntry: [1 2 3];
    SiginfoEntry: [1];
    SignalQueueEntry: [] (1 SiginfoEntry);
    ItimerEntry: [1 2 3 4];
    PosixTimerEntry: [1 2 3 4 5 6 7 8 9 10];
    TaskTimersEntry: [1 2 3] (1 ItimerEntry) (2 ItimerEntry) (3 ItimerEntry) (4 PosixTimerEntry);
    SaEntry: [1 2 3 4];
    CredsEntry: [1 2 3 4 5 6 7 8 13];
    UserX86RegsEntry: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27];
    UserX86CetEntry: [1 2];
    UserX86XsaveEntry: [1] (9 UserX86CetEntry);
    UserX86FpregsEntry: [1 2 3 4 5 6 7 8] (13 UserX86XsaveEntry);
    UserDescT: [1 2 3 4 5 6 7 8 9 10];
    ThreadInfoX86: [1 2 3] (2 UserX86RegsEntry) (3 UserX86FpregsEntry) (4 UserDescT);
    AioRingEntry: [1 2 3];
    MmEntry: [1 2 3 4 5 6 7 8 9 10 11 12] (14 VmaEntry) (16 AioRingEntry);
    VmaEntry: [1 2 3 4 5 6 7 8];
    PagemapHead: [1];
    PagemapEntry: [1 2];
    FdinfoEntry: [1 2 3 4];
    FileEntry: [1 2] (3 RegFileEntry) (4 InetSkEntry) (5 NsFileEntry) (6 PacketSockEntry) (7 NetlinkSkEntry) (8 EventfdFileEntry) (9 EventpollFileEntry) (10 SignalfdEntry) (11 TunfileEntry) (12 TimerfdEntry) (13 InotifyFileEntry) (14 FanotifyFileEntry) (15 ExtFileEntry) (16 UnixSkEntry) (17 FifoEntry) (18 PipeEntry) (19 TtyFileEntry) (20 MemfdFileEntry) (21 BpfmapFileEntry) (22 PidfdEntry);
    FownEntry: [1 2 3 4 5];
    RegFileEntry: [1 2 3 5 6] (5 FownEntry);
    GhostFileEntry: [1 2 3] (7 Timeval) (8 Timeval);
    GhostChunkEntry: [1 2];
    Timeval: [1 2];
    RemapFilePathEntry: [1 2];
    PipeEntry: [1 2 3 4] (4 FownEntry);
    PipeDataEntry: [1 2];
    FifoEntry: [1 2];
    EventfdFileEntry: [1 2 3 4] (3 FownEntry);
    EventpollTfdEntry: [1 2 3 4];
    EventpollFileEntry: [1 2 3] (3 FownEntry) (4 EventpollTfdEntry);
    TimerfdEntry: [1 2 3 4 5 6 7 8 9 10] (3 FownEntry);
    SignalfdEntry: [1 2 3 4] (3 FownEntry);
    FsEntry: [1 2];
    ExtFileEntry: [1 5] (5 FownEntry);
    MemfdFileEntry: [1 2 3 4 5] (4 FownEntry);
    MemfdInodeEntry: [1 2 3 4 5 6 7];
    PidfdEntry: [1 2 3 4 5] (5 FownEntry);
    NsFileEntry: [1 2 3 4];
    FileLockEntry: [1 2 3 4 5 6];
    InotifyWdEntry: [1 2 3 4 5 6 7] (7 FhEntry);
    InotifyFileEntry: [1 2 4] (4 FownEntry) (5 InotifyWdEntry);
    FanotifyInodeMarkEntry: [1 2] (2 FhEntry);
    FanotifyMountMarkEntry: [1];
    FanotifyMarkEntry: [1 2 3 4 5 6] (7 FanotifyInodeMarkEntry) (8 FanotifyMountMarkEntry);
    FanotifyFileEntry: [1 2 3 4 5] (3 FownEntry) (6 FanotifyMarkEntry);
    FhEntry: [1 2];
    IrmapCacheEntry: [1 2 3];
    FilePermsEntry: [1 2 3];
    UnixSkEntry: [1 2 3 4 5 6 7 8 9 10 11] (9 FownEntry) (10 SkOptsEntry) (13 FilePermsEntry);
    IpOptsRawEntry: [];
    IpOptsEntry: [] (4 IpOptsRawEntry);
    InetSkEntry: [1 2 3 4 5 6 7 8 9 10 13 14] (13 FownEntry) (14 SkOptsEntry) (16 IpOptsEntry) (20 TcpOptsEntry);
    TcpOptsEntry: [];
    TcpStreamEntry: [1 2 3 4 5 6 7];
    SkOptsEntry: [1 2 3 4 5 6];
    ScmEntry: [1];
    SkPacketEntry: [1 2] (4 ScmEntry);
    PacketMclist: [1 2 3];
    PacketRing: [1 2 3 4 5 6 7];
    PacketSockEntry: [1 2 3 4 5 6 7 8 9 10 11 12 13 14 15] (6 FownEntry) (7 SkOptsEntry) (16 PacketMclist) (18 PacketRing) (19 PacketRing);
    NetlinkSkEntry: [1 2 3 4 6 7 9 10 11 12] (11 FownEntry) (12 SkOptsEntry);
    WinsizeEntry: [1 2 3 4];
    TermiosEntry: [1 2 3 4 5 6 7];
    TtyPtyEntry: [1];
    TtyDataEntry: [1 2];
    TtyInfoEntry: [1 2 3 4 5 6 7 8] (9 TermiosEntry) (10 TermiosEntry) (11 WinsizeEntry) (12 TtyPtyEntry);
    TtyFileEntry: [1 2 3 4] (4 FownEntry);
    MntEntry: [1 2 3 4 5 6 7 8 9];
    UtsnsEntry: [1 2];
    IpcDescEntry: [1 2 3 4 5 6 7];
    IpcMsg: [1 2];
    IpcMsgEntry: [1 2 3] (1 IpcDescEntry);
    IpcSemEntry: [1 2] (1 IpcDescEntry);
    IpcShmEntry: [1 2] (1 IpcDescEntry);
    IpcVarEntry: [2 3 4 5 6 7 8 9 10 11 12];
    UidGidExtent: [1 2 3];
    UsernsEntry: [] (1 UidGidExtent) (2 UidGidExtent);
    Timespec: [1 2];
    TimensEntry: [1 2] (1 Timespec) (2 Timespec);
    PidnsEntry: [];
    BinfmtMiscEntry: [1 2 3];
    AutofsEntry: [1 2 3 4 5 6];
    NetDeviceEntry: [1 2 3 4 5] (6 TunLinkEntry) (9 SysctlEntry) (10 SysctlEntry) (11 MacvlanLinkEntry) (15 SitEntry);
    NetnsId: [1 2];
    NetnsEntry: [] (3 SysctlEntry) (4 SysctlEntry) (5 SysctlEntry) (6 SysctlEntry) (7 NetnsId) (9 SysctlEntry) (10 SysctlEntry);
    MacvlanLinkEntry: [1];
    SitEntry: [];
    SysctlEntry: [1];
    TunfileEntry: [1];
    TunLinkEntry: [1 2 3 4 5];
    CgroupPerms: [1 2 3];
    CgroupPropEntry: [1 2] (3 CgroupPerms);
    CgroupDirEntry: [1] (2 CgroupDirEntry) (3 CgroupPropEntry) (4 CgroupPerms);
    CgControllerEntry: [] (2 CgroupDirEntry);
    CgMemberEntry: [1 2];
    CgSetEntry: [1] (2 CgMemberEntry);
    CgroupEntry: [] (1 CgSetEntry) (2 CgControllerEntry);
    SeccompFilter: [1];
    SeccompEntry: [] (1 SeccompFilter);
    AaPolicy: [1 2];
    AaNamespace: [1] (2 AaPolicy) (3 AaNamespace);
    ApparmorEntry: [] (1 AaNamespace);
    BpfmapFileEntry: [1 2 3 4 5 6 7 8 9 10 11 12 13 14] (4 FownEntry);
    BpfmapDataEntry: [1 2 3 4];
    DumpStatsEntry: [1 2 3 4 5 6 7 9];
    RestoreStatsEntry: [1 2 3 4];
    StatsEntry: [] (1 DumpStatsEntry) (2 RestoreStatsEntry);
    CpuinfoX86Entry: [1 2 3 4 5];
    CpuinfoEntry: [] (1 CpuinfoX86Entry);
    ManifestEntry: [1 2];
    PeerCredEntry: [1 2 3 4];
    rpc::CriuPageServerInfo: [];
    rpc::CriuVethPair: [1 2];
    rpc::ExtMountMap: [1 2];
    rpc::JoinNamespace: [1 2];
    rpc::InheritFd: [1 2];
    rpc::CgroupRoot: [2];
    rpc::UnixSk: [1];
    rpc::CriuOpts: [1] (11 rpc::CriuPageServerInfo) (19 rpc::CriuVethPair) (23 rpc::ExtMountMap) (25 rpc::CgroupRoot) (27 rpc::InheritFd) (33 rpc::UnixSk) (39 rpc::JoinNamespace);
    rpc::CriuDumpResp: [];
    rpc::CriuRestoreResp: [1];
    rpc::CriuNotify: [];
    rpc::CriuFeatures: [];
    rpc::CriuReq: [1] (2 rpc::CriuOpts) (5 rpc::CriuFeatures);
    rpc::CriuResp: [1 2] (3 rpc::CriuDumpResp) (4 rpc::CriuRestoreResp) (5 rpc::CriuNotify) (6 rpc::CriuPageServerInfo) (8 rpc::CriuFeatures) (10 rpc::CriuVersion);
    rpc::CriuVersion: [1 2];
}
