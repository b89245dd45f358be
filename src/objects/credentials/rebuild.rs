//! Credentials, in the one order that works: see capabilities(7).
//!
//! Ids first, under `SECBIT_NO_SETUID_FIXUP` so that capabilities survive;
//! then what needs CAP_SETPCAP (bounding set, securebits); then the
//! capabilities themselves, the ambient ones, and no_new_privs. Credentials
//! belong to a thread: each thread runs these calls.

use crate::base::{Error, NsPid, Result};
use crate::image::records::CredsEntry;
use crate::sys::steer::Batch;

const SECBIT_NO_SETUID_FIXUP: u64 = 1 << 2;
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;
const MAX_GROUPS: usize = 65536;
const UNCONFINED: &str = "unconfined";

/// Checks a record.
///
/// # Errors
/// A security label (none can be set yet), too many groups, capabilities of
/// more than 64 bits.
pub fn check(tid: NsPid, c: &CredsEntry) -> Result<()> {
    let who = format!("credentials of thread {tid}");
    for (what, label) in [
        ("profile", &c.lsm_profile),
        ("socket label", &c.lsm_sockcreate),
    ] {
        if let Some(l) = label
            && !l.is_empty()
            && l != UNCONFINED
        {
            return Err(Error::refused(
                who,
                format!("it runs under security {what} {l:?}, which is not carried"),
            ));
        }
    }
    if c.groups.len() > MAX_GROUPS {
        return Err(Error::image(who, format!("{} groups", c.groups.len())));
    }
    for set in [&c.cap_inh, &c.cap_prm, &c.cap_eff, &c.cap_bnd, &c.cap_amb] {
        if set.len() > 2 {
            return Err(Error::image(
                who,
                "a set of capabilities of more than 64 bits",
            ));
        }
    }
    Ok(())
}

fn bits(set: &[u32]) -> u64 {
    let word = |i: usize| u64::from(set.get(i).copied().unwrap_or(0));
    word(0) | (word(1) << 32)
}

/// Adds the calls that make the running thread have these credentials.
/// `last_cap` is the highest capability that this kernel knows.
pub fn set(batch: &mut Batch, c: &CredsEntry, last_cap: u32) {
    let groups: Vec<u8> = c.groups.iter().flat_map(|g| g.to_le_bytes()).collect();
    let groups = batch.bytes(&groups);
    batch.call(
        "setgroups",
        libc::SYS_setgroups,
        &[c.groups.len().into(), groups.into()],
    );
    prctl(
        batch,
        "prctl(PR_SET_SECUREBITS)",
        libc::PR_SET_SECUREBITS,
        SECBIT_NO_SETUID_FIXUP,
    );
    batch.call(
        "setresgid",
        libc::SYS_setresgid,
        &[c.gid.into(), c.egid.into(), c.sgid.into()],
    );
    batch.call("setfsgid", libc::SYS_setfsgid, &[c.fsgid.into()]);
    batch.call(
        "setresuid",
        libc::SYS_setresuid,
        &[c.uid.into(), c.euid.into(), c.suid.into()],
    );
    batch.call("setfsuid", libc::SYS_setfsuid, &[c.fsuid.into()]);

    let bounding = bits(&c.cap_bnd);
    for cap in (0..=last_cap.min(63)).filter(|cap| bounding & (1 << cap) == 0) {
        prctl(
            batch,
            "prctl(PR_CAPBSET_DROP)",
            libc::PR_CAPBSET_DROP,
            cap.into(),
        );
    }
    prctl(
        batch,
        "prctl(PR_SET_SECUREBITS)",
        libc::PR_SET_SECUREBITS,
        c.secbits.into(),
    );

    let mut header = [0u8; 8];
    header[..4].copy_from_slice(&CAPABILITY_VERSION_3.to_le_bytes());
    let word = |set: &[u32], i: usize| set.get(i).copied().unwrap_or(0).to_le_bytes();
    let data: Vec<u8> = (0..2)
        .flat_map(|i| {
            [
                word(&c.cap_eff, i),
                word(&c.cap_prm, i),
                word(&c.cap_inh, i),
            ]
        })
        .flatten()
        .collect();
    let header = batch.bytes(&header);
    let data = batch.bytes(&data);
    batch.call("capset", libc::SYS_capset, &[header.into(), data.into()]);

    let ambient = bits(&c.cap_amb);
    for cap in (0..=last_cap.min(63)).filter(|cap| ambient & (1 << cap) != 0) {
        batch.call(
            "prctl(PR_CAP_AMBIENT_RAISE)",
            libc::SYS_prctl,
            &[
                libc::PR_CAP_AMBIENT.into(),
                libc::PR_CAP_AMBIENT_RAISE.into(),
                cap.into(),
                0.into(),
                0.into(),
            ],
        );
    }
    if c.no_new_privs.unwrap_or(0) != 0 {
        prctl(
            batch,
            "prctl(PR_SET_NO_NEW_PRIVS)",
            libc::PR_SET_NO_NEW_PRIVS,
            1,
        );
    }
}

fn prctl(batch: &mut Batch, what: &'static str, option: i32, value: u64) {
    batch.call(
        what,
        libc::SYS_prctl,
        &[option.into(), value.into(), 0.into(), 0.into(), 0.into()],
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_security_profile_is_refused_by_its_name() {
        let mut c = CredsEntry {
            lsm_profile: Some("docker-default".into()),
            ..Default::default()
        };
        let e = check(NsPid(4), &c).unwrap_err().to_string();
        assert!(
            e.contains("docker-default") && e.contains("thread 4"),
            "{e}"
        );
        c.lsm_profile = Some("unconfined".into());
        assert!(check(NsPid(4), &c).is_ok());
        c.cap_bnd = vec![0; 3];
        assert!(check(NsPid(4), &c).is_err());
    }

    #[test]
    fn the_words_of_a_capability_set_are_low_first() {
        assert_eq!(bits(&[1, 2]), 0x2_0000_0001);
        assert_eq!(bits(&[]), 0);
    }
}
