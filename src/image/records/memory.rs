//! Memory maps and the index of saved pages.

/// One ring of io_setup(2).
#[derive(Clone, PartialEq, prost::Message)]
pub struct AioRingEntry {
    #[prost(uint64, required, tag = "1")]
    pub id: u64,
    #[prost(uint32, required, tag = "2")]
    pub nr_req: u32,
    #[prost(uint32, required, tag = "3")]
    pub ring_len: u32,
}

/// One address space, see `PR_SET_MM_MAP` in prctl(2).
#[derive(Clone, PartialEq, prost::Message)]
pub struct MmEntry {
    #[prost(uint64, required, tag = "1")]
    pub mm_start_code: u64,
    #[prost(uint64, required, tag = "2")]
    pub mm_end_code: u64,
    #[prost(uint64, required, tag = "3")]
    pub mm_start_data: u64,
    #[prost(uint64, required, tag = "4")]
    pub mm_end_data: u64,
    #[prost(uint64, required, tag = "5")]
    pub mm_start_stack: u64,
    #[prost(uint64, required, tag = "6")]
    pub mm_start_brk: u64,
    #[prost(uint64, required, tag = "7")]
    pub mm_brk: u64,
    #[prost(uint64, required, tag = "8")]
    pub mm_arg_start: u64,
    #[prost(uint64, required, tag = "9")]
    pub mm_arg_end: u64,
    #[prost(uint64, required, tag = "10")]
    pub mm_env_start: u64,
    #[prost(uint64, required, tag = "11")]
    pub mm_env_end: u64,
    /// Id of a regular file.
    #[prost(uint32, required, tag = "12")]
    pub exe_file_id: u32,
    /// Words of the auxiliary vector, see getauxval(3).
    #[prost(uint64, repeated, packed = "false", tag = "13")]
    pub mm_saved_auxv: Vec<u64>,
    #[prost(message, repeated, tag = "14")]
    pub vmas: Vec<VmaEntry>,
    /// See `PR_SET_DUMPABLE` in prctl(2).
    #[prost(int32, optional, tag = "15")]
    pub dumpable: Option<i32>,
    #[prost(message, repeated, tag = "16")]
    pub aios: Vec<AioRingEntry>,
    #[prost(bool, optional, tag = "17")]
    pub thp_disabled: Option<bool>,
}

/// One area of an address space.
#[derive(Clone, PartialEq, prost::Message)]
pub struct VmaEntry {
    /// First byte.
    #[prost(uint64, required, tag = "1")]
    pub start: u64,
    /// First byte behind.
    #[prost(uint64, required, tag = "2")]
    pub end: u64,
    /// Offset in the file, bytes.
    #[prost(uint64, required, tag = "3")]
    pub pgoff: u64,
    /// Id of a file, or of the shared memory that this area shows.
    #[prost(uint64, required, tag = "4")]
    pub shmid: u64,
    /// `PROT_*`.
    #[prost(uint32, required, tag = "5")]
    pub prot: u32,
    /// `MAP_*`.
    #[prost(uint32, required, tag = "6")]
    pub flags: u32,
    /// `VMA_AREA_*` of the image format.
    #[prost(uint32, required, tag = "7")]
    pub status: u32,
    /// Not used, -1.
    #[prost(sint64, required, tag = "8")]
    pub fd: i64,
    /// Bit n: madvise(2) with advice n was given.
    #[prost(uint64, optional, tag = "9")]
    pub madv: Option<u64>,
    /// `O_*` that the file was opened with.
    #[prost(uint32, optional, tag = "10")]
    pub fdflags: Option<u32>,
    /// Ours, CRIU passes it over: what is locked was locked by mlock2(2) with
    /// `MLOCK_ONFAULT`.
    #[prost(bool, optional, tag = "1001")]
    pub lock_on_fault: Option<bool>,
}

/// First record of a pagemap: the number of the pages file that goes with it.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PagemapHead {
    #[prost(uint32, required, tag = "1")]
    pub pages_id: u32,
}

/// A run of pages; those with content lie one after the other in the pages file.
#[derive(Clone, PartialEq, prost::Message)]
pub struct PagemapEntry {
    /// Address of the first page; a byte offset for shared memory.
    #[prost(uint64, required, tag = "1")]
    pub vaddr: u64,
    /// Low 32 bits of the number of pages, for readers that do not know `nr_pages`.
    #[prost(uint32, required, tag = "2")]
    pub compat_nr_pages: u32,
    /// Old form of PE_PARENT.
    #[prost(bool, optional, tag = "3")]
    pub in_parent: Option<bool>,
    /// `PE_*`, see [`crate::image::pages`].
    #[prost(uint32, optional, tag = "4")]
    pub flags: Option<u32>,
    /// Number of pages.
    #[prost(uint64, optional, tag = "5")]
    pub nr_pages: Option<u64>,
}
