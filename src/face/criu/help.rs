//! `criu --help`.

/// The whole text.
pub(crate) const TEXT: &str = "\
dunlin, under the name of criu: saves and restores trees of processes.

Usage:
  criu dump -t PID [OPTIONS]         save a tree of processes, then end it
  criu restore [OPTIONS]             bring a saved tree back
  criu lazy-pages -D DIR [OPTIONS]   serve memory to a tree being restored
  criu check [--feature NAME]        what kernel and privileges allow
  criu swrk FD                       serve a client (runc, crun, podman)

Where things are:
  -D, --images-dir DIR      the images (default: here)
  -W, --work-dir DIR        logs, pid files, statistics (default: the images')
  -o, --log-file FILE       the log, in the work directory (default: stderr)
  -v[NUM], --verbosity[=NUM]  0 nothing, 1 errors, 2 warnings (default),
                            3 information, 4 debug
      --pidfile FILE        write the pid of the root task
      --display-stats       print figures at the end
      --config FILE, --no-default-config

After a dump:
  -R, --leave-running       the processes go on
  -s, --leave-stopped       they stay, stopped

What a restore does:
  -d, --restore-detached    return when the tree runs (else: when it has ended)
  -S, --restore-sibling     the root becomes a child of our parent
      --inherit-fd fd[N]:RESOURCE, --join-ns NS:FILE, --exec-cmd -- COMMAND

What is around the tree:
  -r, --root DIR            its root file system
      --external RESOURCE, -M, --ext-mount-map KEY:VALUE, --skip-mnt PATH
      --empty-ns net        the network namespace comes back empty
      --manage-cgroups[=MODE], --cgroup-root [CONTROLLER:]PATH
  -j, --shell-job           session and terminal lie outside
  -l, --file-locks          nobody else uses its file locks
      --action-script FILE  run at each stage

Lazy memory:
      --lazy-pages          on dump: serve pages instead of writing them;
                            on restore: let criu lazy-pages fill memory
      --page-server, --address ADDR, --port PORT
      --status-fd FD        gets a zero byte when ready
      --daemon              go to the background when ready

Exit codes: 0 done, 1 failed, 2 wrong usage. docs/criu-options.md says of each
option of CRIU whether it is honoured, has no effect, or is refused.
";
