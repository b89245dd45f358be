//! One error type: what was done, to what, who is to blame, and why it failed.
//!
//! Its text is `operation subject: cause`, lower case, and never loses an
//! errno: `mmap 0x7f00-0x8f00 of task 12: Cannot allocate memory (os error 12)`.

use std::borrow::Cow;
use std::fmt;
use std::io;

/// The result of nearly everything in dunlin.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to do something about an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blame {
    /// dunlin itself: a bug.
    Us,
    /// The person or tool that called dunlin: flags, bundle, RPC request.
    Caller,
    /// An image directory: missing, damaged or contradictory.
    Image,
    /// The other end of a connection: what it sent or said.
    Peer,
    /// The connection itself: it broke, or nothing came. A new one may do better.
    Link,
    /// The container: it holds an object that cannot be carried.
    Container,
    /// The kernel refused a call, or lacks a feature or a privilege.
    Kernel,
}

/// What kind of cause stands behind an error.
#[derive(Debug)]
pub enum ErrorKind {
    /// A system call failed.
    Os(io::Error),
    /// A sentence says it.
    Text(Cow<'static, str>),
    /// Another error of ours, with its own operation and subject.
    Inner(Box<Error>),
    /// An error of another crate.
    Other(Box<dyn std::error::Error + Send + Sync>),
}

/// An error with operation, subject, blame and cause.
#[derive(Debug)]
pub struct Error {
    blame: Blame,
    context: String,
    kind: ErrorKind,
}

impl Error {
    /// The call `context` failed in the kernel with `cause`.
    pub fn os(context: impl Into<String>, cause: io::Error) -> Self {
        Self {
            blame: Blame::Kernel,
            context: context.into(),
            kind: ErrorKind::Os(cause),
        }
    }

    /// The call `context` failed with this errno.
    pub fn errno(context: impl Into<String>, errno: i32) -> Self {
        Self::os(context, io::Error::from_raw_os_error(errno))
    }

    /// The last OS error of this thread, for `context`.
    pub fn last_os(context: impl Into<String>) -> Self {
        Self::os(context, io::Error::last_os_error())
    }

    /// `blame` did something that the sentence `why` tells.
    pub fn new(
        blame: Blame,
        context: impl Into<String>,
        why: impl Into<Cow<'static, str>>,
    ) -> Self {
        Self {
            blame,
            context: context.into(),
            kind: ErrorKind::Text(why.into()),
        }
    }

    /// The image is wrong: `context` names file and record, `why` what is wrong.
    pub fn image(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Image, context, why)
    }

    /// The caller is wrong: a flag, a field, a bundle.
    pub fn caller(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Caller, context, why)
    }

    /// The container holds `context`, which cannot be carried because of `why`.
    pub fn refused(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Container, context, why)
    }

    /// The peer is wrong, or says that it failed.
    pub fn peer(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Peer, context, why)
    }

    /// The connection broke, was closed, or stayed silent.
    pub fn link(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Link, context, why)
    }

    /// A bug of ours.
    pub fn bug(context: impl Into<String>, why: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Blame::Us, context, why)
    }

    /// An error of another crate, with its blame.
    pub fn other(
        blame: Blame,
        context: impl Into<String>,
        cause: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Self {
        Self {
            blame,
            context: context.into(),
            kind: ErrorKind::Other(cause.into()),
        }
    }

    /// Puts a wider operation around this error; blame stays.
    #[must_use]
    pub fn within(self, context: impl Into<String>) -> Self {
        Self {
            blame: self.blame,
            context: context.into(),
            kind: ErrorKind::Inner(Box::new(self)),
        }
    }

    /// The same error with another to blame.
    #[must_use]
    pub fn blamed(self, blame: Blame) -> Self {
        Self { blame, ..self }
    }

    /// Who has to do something about it.
    pub fn blame(&self) -> Blame {
        self.blame
    }

    /// The errno at the root of this error, if a system call failed.
    pub fn raw_os_error(&self) -> Option<i32> {
        match &self.kind {
            ErrorKind::Os(e) => e.raw_os_error(),
            ErrorKind::Inner(e) => e.raw_os_error(),
            ErrorKind::Text(_) | ErrorKind::Other(_) => None,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.context)?;
        match &self.kind {
            ErrorKind::Os(e) => write!(f, ": {e}"),
            ErrorKind::Text(t) => write!(f, ": {t}"),
            ErrorKind::Inner(e) => write!(f, ": {e}"),
            ErrorKind::Other(e) => write!(f, ": {e}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match &self.kind {
            ErrorKind::Os(e) => Some(e),
            ErrorKind::Inner(e) => Some(e),
            ErrorKind::Other(e) => Some(e.as_ref()),
            ErrorKind::Text(_) => None,
        }
    }
}

/// Puts operation and subject on foreign errors.
pub trait ResultExt<T> {
    /// On failure, names the operation and its subject.
    fn context(self, context: impl FnOnce() -> String) -> Result<T>;
}

impl<T> ResultExt<T> for std::result::Result<T, io::Error> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::os(context(), e))
    }
}

impl<T> ResultExt<T> for std::result::Result<T, nix::errno::Errno> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| Error::errno(context(), e as i32))
    }
}

impl<T> ResultExt<T> for std::result::Result<T, Error> {
    fn context(self, context: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|e| e.within(context()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_names_operation_subject_and_cause_and_keeps_the_errno() {
        let e = Error::errno("mmap 0x1000-0x2000", libc::ENOMEM).within("restore task 12");
        assert_eq!(
            e.to_string(),
            "restore task 12: mmap 0x1000-0x2000: Cannot allocate memory (os error 12)"
        );
        assert_eq!(e.raw_os_error(), Some(libc::ENOMEM));
        assert_eq!(e.blame(), Blame::Kernel);
    }
}
