//! What an RPC request says, put into the words of the command line. Each
//! field of `criu_opts` is honoured, has no effect, or is refused, exactly as
//! the option of that name; this file only translates.

use super::typed::{Afterwards, Typed};
use crate::base::{Error, Result};
use crate::image::records::rpc::{CriuCgMode, CriuOpts, CriuPageServerInfo};

/// CLONE_NEWNET: the only namespace that can be left empty.
const NEWNET: u32 = 0x4000_0000;

/// Puts the fields of `request` over what configuration files said.
///
/// # Errors
/// A field that is refused or makes no sense, by its name.
pub(crate) fn overlay(typed: &mut Typed, request: &CriuOpts) -> Result<()> {
    flags(typed, request)?;
    refusable(typed, request)?;
    lists(typed, request)?;
    if request.leave_running == Some(true) {
        typed.afterwards = Afterwards::Running;
    }
    typed.orphan_pts_master |= request.orphan_pts_master == Some(true);
    if request.leave_stopped == Some(true) {
        typed.afterwards = Afterwards::Stopped;
    }
    if let Some(pid) = request.pid {
        typed.tree = Some(pid);
    }
    if let Some(level) = request.log_level {
        typed.verbosity = Some(u32::try_from(level).unwrap_or(0));
    }
    for (slot, value) in [
        (&mut typed.root, &request.root),
        (&mut typed.log_file, &request.log_file),
    ] {
        if value.is_some() {
            slot.clone_from(value);
        }
    }
    if let Some(manage) = request.manage_cgroups {
        typed.manage_cgroups = Some(if manage { "soft" } else { "ignore" }.to_owned());
    }
    if let Some(mode) = request.manage_cgroups_mode {
        typed.manage_cgroups = Some(cgroup_mode(mode)?.to_owned());
    }
    if let Some(empty) = request.empty_ns {
        if empty & !NEWNET != 0 {
            return Err(Error::caller(
                format!("empty_ns {empty:#x}"),
                "only the network namespace can be left empty",
            ));
        }
        typed.empty_net = empty != 0;
    }
    if let Some(server) = &request.ps {
        page_server(typed, server)?;
    }
    Ok(())
}

fn cgroup_mode(mode: i32) -> Result<&'static str> {
    match CriuCgMode::try_from(mode) {
        Ok(CriuCgMode::Ignore) => Ok("ignore"),
        Ok(CriuCgMode::CgNone) => Ok("none"),
        Ok(CriuCgMode::Props) => Ok("props"),
        Ok(CriuCgMode::Soft | CriuCgMode::Default) => Ok("soft"),
        Ok(CriuCgMode::Full) => Ok("full"),
        Ok(CriuCgMode::Strict) => Ok("strict"),
        Err(_) => Err(Error::caller(
            format!("manage_cgroups_mode {mode}"),
            "is not known",
        )),
    }
}

fn page_server(typed: &mut Typed, server: &CriuPageServerInfo) -> Result<()> {
    if server.fd.is_some_and(|fd| fd >= 0) {
        typed.read(&["--ps-socket=0".to_owned()])?;
    }
    typed.page_server = true;
    typed.address.clone_from(&server.address);
    typed.port = match server.port {
        None | Some(0) => None,
        Some(port) => Some(
            u16::try_from(port)
                .map_err(|_| Error::caller(format!("ps.port {port}"), "is not a port"))?,
        ),
    };
    Ok(())
}

/// Yes-or-no fields, by the name of their option.
fn flags(typed: &mut Typed, request: &CriuOpts) -> Result<()> {
    for (name, value) in [
        ("tcp-established", request.tcp_established),
        ("evasive-devices", request.evasive_devices),
        ("shell-job", request.shell_job),
        ("file-locks", request.file_locks),
        ("track-mem", request.track_mem),
        ("auto-dedup", request.auto_dedup),
        ("link-remap", request.link_remap),
        ("force-irmap", request.force_irmap),
        ("restore-sibling", request.rst_sibling),
        ("skip-in-flight", request.tcp_skip_in_flight),
        ("tcp-close", request.tcp_close),
        ("weak-sysctls", request.weak_sysctls),
        ("tls", request.tls),
        ("mntns-compat-mode", request.mntns_compat_mode),
        ("skip-file-rwx-check", request.skip_file_rwx_check),
        ("unprivileged", request.unprivileged),
        ("display-stats", request.display_stats),
    ] {
        match value {
            Some(true) => option(typed, name, None)?,
            Some(false) => option(typed, &format!("no-{name}"), None)?,
            None => {}
        }
    }
    for (name, value) in [
        ("enable-external-sharing", request.ext_sharing),
        ("enable-external-masters", request.ext_masters),
        ("tls-no-cn-verify", request.tls_no_cn_verify),
    ] {
        if value == Some(true) {
            option(typed, name, None)?;
        }
    }
    typed.ext_unix_sk = request.ext_unix_sk.unwrap_or(typed.ext_unix_sk);
    typed.lazy_pages = request.lazy_pages.unwrap_or(typed.lazy_pages);
    Ok(())
}

/// Fields with a value that go through the table, so that it decides.
fn refusable(typed: &mut Typed, request: &CriuOpts) -> Result<()> {
    for (name, value) in [
        ("prev-images-dir", &request.parent_img),
        ("lsm-profile", &request.lsm_profile),
        ("freeze-cgroup", &request.freeze_cgroup),
        ("lsm-mount-context", &request.lsm_mount_context),
        ("cgroup-props", &request.cgroup_props),
        ("cgroup-props-file", &request.cgroup_props_file),
        ("cgroup-yard", &request.cgroup_yard),
        ("tls-cacert", &request.tls_cacert),
        ("tls-cacrl", &request.tls_cacrl),
        ("tls-cert", &request.tls_cert),
        ("tls-key", &request.tls_key),
    ] {
        // Bindings send an empty string for what was not given.
        if let Some(value) = value.as_deref().filter(|v| !v.is_empty()) {
            option(typed, name, Some(value))?;
        }
    }
    for (name, values) in [
        ("cgroup-dump-controller", &request.cgroup_dump_controller),
        ("enable-fs", &request.enable_fs),
        ("irmap-scan-path", &request.irmap_scan_paths),
        ("skip-mnt", &request.skip_mnt),
        ("external", &request.external),
    ] {
        for value in values {
            option(typed, name, Some(value))?;
        }
    }
    for (name, given) in [
        ("cpu-cap", request.cpu_cap.is_some()),
        ("pre-dump-mode", request.pre_dump_mode.is_some()),
        ("network-lock", request.network_lock.is_some()),
        ("ghost-limit", request.ghost_limit.is_some()),
        ("timeout", request.timeout.is_some()),
        ("veth-pair", !request.veths.is_empty()),
    ] {
        if given {
            option(typed, name, Some("as requested"))?;
        }
    }
    if !request.exec_cmd.is_empty() {
        return Err(Error::caller(
            "exec_cmd is not supported by RPC",
            "the caller gets the pid and can wait itself",
        ));
    }
    Ok(())
}

fn option(typed: &mut Typed, name: &str, value: Option<&str>) -> Result<()> {
    let arg = match value {
        Some(value) => format!("--{name}={value}"),
        None => format!("--{name}"),
    };
    typed.read(&[arg]).map(|_| ())
}

fn lists(typed: &mut Typed, request: &CriuOpts) -> Result<()> {
    for mount in &request.ext_mnt {
        typed.ext_mnt.push((mount.key.clone(), mount.val.clone()));
    }
    if request.auto_ext_mnt == Some(true) {
        typed.external.push("mnt[]".to_owned());
    }
    for root in &request.cg_root {
        typed
            .cgroup_root
            .push((root.ctrl.clone(), root.path.clone()));
    }
    for inherit in &request.inherit_fd {
        if inherit.key.is_empty() {
            return Err(Error::caller(
                format!("inherit_fd {}", inherit.fd),
                "has no key",
            ));
        }
        typed.inherit_fd.push((inherit.key.clone(), inherit.fd));
    }
    for join in &request.join_ns {
        typed.join_ns.push((
            join.ns.clone(),
            join.ns_file.clone(),
            join.extra_opt.clone(),
        ));
    }
    for socket in &request.unix_sk_ino {
        typed.external.push(format!("unix[{}]", socket.inode));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::records::rpc::{ExtMountMap, InheritFd};

    /// The fields that runc 1.1 sends with each checkpoint.
    fn runc_dump() -> CriuOpts {
        CriuOpts {
            images_dir_fd: 5,
            pid: Some(100),
            leave_running: Some(false),
            ext_unix_sk: Some(false),
            tcp_established: Some(false),
            shell_job: Some(false),
            file_locks: Some(false),
            log_level: Some(4),
            log_file: Some("dump.log".into()),
            notify_scripts: Some(true),
            root: Some("/bundle/rootfs".into()),
            auto_dedup: Some(false),
            manage_cgroups: Some(true),
            empty_ns: Some(NEWNET),
            lazy_pages: Some(false),
            orphan_pts_master: Some(true),
            config_file: Some("/etc/criu/runc.conf".into()),
            ext_mnt: vec![ExtMountMap {
                key: "/etc/hosts".into(),
                val: "/etc/hosts".into(),
            }],
            ..CriuOpts::default()
        }
    }

    #[test]
    fn what_runc_sends_is_understood() {
        let mut typed = Typed::default();
        overlay(&mut typed, &runc_dump()).unwrap();
        assert_eq!(typed.tree, Some(100));
        assert_eq!(typed.verbosity, Some(4));
        assert!(typed.empty_net);
        assert_eq!(typed.manage_cgroups.as_deref(), Some("soft"));
        assert_eq!(typed.ext_mnt, [("/etc/hosts".into(), "/etc/hosts".into())]);
        assert_eq!(typed.afterwards, Afterwards::Killed);
    }

    #[test]
    fn a_request_overrides_the_configuration_file() {
        let mut typed = Typed::default();
        typed
            .read(&["--file-locks".into(), "--root=/other".into()])
            .unwrap();
        overlay(&mut typed, &runc_dump()).unwrap();
        assert!(!typed.file_locks);
        assert_eq!(typed.root.as_deref(), Some("/bundle/rootfs"));
    }

    #[test]
    fn refused_and_wrong_fields_are_named() {
        let refused = [
            (
                CriuOpts {
                    lsm_profile: Some("apparmor:x".into()),
                    ..runc_dump()
                },
                "--lsm-profile",
            ),
            (
                CriuOpts {
                    tcp_close: Some(true),
                    ..runc_dump()
                },
                "--tcp-close",
            ),
            (
                CriuOpts {
                    empty_ns: Some(0x2000_0000),
                    ..runc_dump()
                },
                "empty_ns",
            ),
            (
                CriuOpts {
                    manage_cgroups_mode: Some(77),
                    ..runc_dump()
                },
                "manage_cgroups_mode 77",
            ),
            (
                CriuOpts {
                    inherit_fd: vec![InheritFd {
                        key: String::new(),
                        fd: 4,
                    }],
                    ..runc_dump()
                },
                "inherit_fd 4",
            ),
        ];
        for (request, name) in refused {
            let error = overlay(&mut Typed::default(), &request)
                .unwrap_err()
                .to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
