//! Words that all rooms may use: the error type, identifiers as newtypes, and
//! the limits put on every length that comes from outside.

mod error;
mod ids;
pub mod limits;
mod utc;

pub use error::{Blame, Error, ErrorKind, Result, ResultExt};
pub use ids::{HostPid, NsPid, PAGE_SIZE, PageRange, VAddr};
pub use utc::utc;
