//! `criu swrk FD`: one client, one socket, requests one after another.
//!
//! On a restore this process is what the container's root task is cloned
//! from. It starts no thread, writes nothing but its log, and ends after one
//! dump or restore.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tracing::error;

use super::connection::Connection;
use super::job::Job;
use super::typed::Typed;
use super::{VERSION, dump, restore};
use crate::base::{Blame, Error, HostPid, Result};
use crate::face::{Failure, check};
use crate::image::records::rpc::{
    CriuDumpResp, CriuFeatures, CriuOpts, CriuReq, CriuReqType, CriuResp, CriuRestoreResp,
    CriuVersion,
};
use crate::sys::inherited;

/// Serves the client on inherited descriptor `fd` until it closes or its work
/// is done. `typed` is what configuration files said.
///
/// # Errors
/// The socket failed, or the last request did (it has been answered).
pub(crate) fn serve(fd: i32, typed: &Typed) -> Result<(), Failure> {
    let rpc = Connection::new(inherited::take(fd)?)?;
    loop {
        let request = match rpc.receive() {
            Ok(Some(request)) => request,
            Ok(None) => return Ok(()),
            Err(e) => {
                if e.blame() == Blame::Caller {
                    rpc.send(&failure(CriuReqType::Empty, &e), None)?;
                    return Err(Failure::Told);
                }
                return Err(e.into());
            }
        };
        let more = request.keep_open == Some(true) && may_stay_open(&request);
        let (answer, result) = answer(&rpc, typed, &request);
        rpc.send(&answer, None)?;
        // The client has been told; standard error may be a container's.
        result.map_err(|_| Failure::Told)?;
        if !more {
            return Ok(());
        }
    }
}

/// Requests after which this process is as it was before.
fn may_stay_open(request: &CriuReq) -> bool {
    matches!(
        CriuReqType::try_from(request.r#type),
        Ok(CriuReqType::FeatureCheck | CriuReqType::Version | CriuReqType::Check)
    )
}

fn answer(rpc: &Connection, typed: &Typed, request: &CriuReq) -> (CriuResp, Result<()>) {
    let kind = CriuReqType::try_from(request.r#type).unwrap_or(CriuReqType::Empty);
    let worked = catch_unwind(AssertUnwindSafe(|| work(rpc, typed, kind, request)));
    let worked =
        worked.unwrap_or_else(|_| Err(Error::bug(format!("{kind:?} request"), "panicked")));
    match worked {
        Ok(answer) => (answer, Ok(())),
        Err(e) => {
            error!("{e}");
            (failure(kind, &e), Err(e))
        }
    }
}

fn work(rpc: &Connection, typed: &Typed, kind: CriuReqType, request: &CriuReq) -> Result<CriuResp> {
    let mut answer = CriuResp {
        r#type: kind.into(),
        success: true,
        ..CriuResp::default()
    };
    match kind {
        CriuReqType::Version => {
            answer.version = Some(CriuVersion {
                major_number: VERSION.0,
                minor_number: VERSION.1,
                gitid: None,
                sublevel: None,
                extra: None,
                name: Some(format!("dunlin {}", env!("CARGO_PKG_VERSION"))),
            });
        }
        CriuReqType::FeatureCheck => answer.features = Some(features(request)),
        CriuReqType::Check => check::required()?,
        CriuReqType::Dump => {
            let mut job = job(rpc, typed, request)?;
            if job.typed.tree.is_none() {
                return Err(Error::caller(
                    "dump",
                    "a process cannot dump itself; give a pid",
                ));
            }
            dump::run(&mut job)?;
            answer.dump = Some(CriuDumpResp {
                restored: Some(false),
            });
        }
        CriuReqType::Restore => {
            let mut job = job(rpc, typed, request)?;
            let HostPid(pid) = restore::run(&mut job)?;
            answer.restore = Some(CriuRestoreResp { pid });
        }
        CriuReqType::PreDump | CriuReqType::SinglePreDump => {
            job(rpc, typed, request)?;
            return Err(super::refused_pre_dump());
        }
        CriuReqType::PageServer | CriuReqType::PageServerChld => {
            return Err(super::refused_page_server());
        }
        CriuReqType::CpuinfoDump | CriuReqType::CpuinfoCheck => {
            return Err(super::refused_cpuinfo());
        }
        CriuReqType::WaitPid => {
            return Err(Error::caller(
                "RPC request WAIT_PID is not supported",
                "this process has no children that outlive a request",
            ));
        }
        CriuReqType::Empty | CriuReqType::Notify => {
            return Err(Error::caller(
                format!("RPC request of type {}", request.r#type),
                "is not one that can be served",
            ));
        }
    }
    Ok(answer)
}

fn job<'a>(rpc: &'a Connection, typed: &Typed, request: &CriuReq) -> Result<Job<'a>> {
    let none = CriuOpts::default();
    Job::from_request(typed.clone(), rpc, request.opts.as_ref().unwrap_or(&none))
}

/// Answers are given for what was asked, and nothing else.
fn features(request: &CriuReq) -> CriuFeatures {
    let asked = request.features.clone().unwrap_or_default();
    CriuFeatures {
        // A dump never refers to an earlier one, so tracking is of no use yet.
        mem_track: Some(false),
        lazy_pages: Some(asked.lazy_pages == Some(true) && check::lazy_pages()),
        pidfd_store: Some(false),
    }
}

fn failure(kind: CriuReqType, error: &Error) -> CriuResp {
    let errno = error.raw_os_error().or(match error.blame() {
        Blame::Caller => Some(libc::EBADRQC),
        _ => None,
    });
    let mut answer = CriuResp {
        r#type: kind.into(),
        success: false,
        cr_errno: errno,
        cr_errmsg: Some(error.to_string()),
        ..CriuResp::default()
    };
    match kind {
        CriuReqType::Dump => {
            answer.dump = Some(CriuDumpResp {
                restored: Some(false),
            });
        }
        CriuReqType::Restore => answer.restore = Some(CriuRestoreResp { pid: -1 }),
        _ => {}
    }
    answer
}
