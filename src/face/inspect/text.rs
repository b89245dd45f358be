//! A report as text, in columns.

use super::Section;
use super::areas::Memory;
use super::report::{Report, Task};
use std::fmt::Write;

/// The sections; all if none is named.
pub(super) fn render(report: &Report, sections: &[Section]) -> String {
    let mut out = String::new();
    head(&mut out, report);
    let all = sections.is_empty();
    let shows = |section| all || sections.contains(&section);
    if shows(Section::Ps) {
        title(&mut out, "tasks");
        tasks(&mut out, &report.tasks);
    }
    if shows(Section::Mem) {
        title(&mut out, "memory");
        memory(&mut out, report, !all);
    }
    if shows(Section::Files) {
        title(&mut out, "descriptors");
        descriptors(&mut out, &report.tasks);
    }
    if shows(Section::Ns) {
        title(&mut out, "namespaces");
        namespaces(&mut out, report);
    }
    if shows(Section::Mounts) {
        title(&mut out, "mounts");
        mounts(&mut out, report);
    }
    if shows(Section::Cgroups) {
        title(&mut out, "control groups");
        cgroups(&mut out, report);
    }
    out
}

fn title(out: &mut String, text: &str) {
    let _ = write!(out, "\n{text}\n");
}

fn head(out: &mut String, report: &Report) {
    let image = &report.image;
    let threads: usize = report.tasks.iter().map(|task| task.threads.len()).sum();
    let _ = writeln!(
        out,
        "image {} (version {}, made by {})",
        image.directory, image.version, image.made_by
    );
    let _ = writeln!(
        out,
        "{} tasks, {threads} threads, {} of metadata",
        report.tasks.len(),
        bytes(image.metadata_bytes)
    );
    if image.has_parent {
        out.push_str("has a parent image\n");
    }
    if let Some(damage) = &image.damage {
        let _ = writeln!(out, "NOT WHOLE: {damage}");
    }
}

fn tasks(out: &mut String, tasks: &[Task]) {
    let mut rows = vec![row(&[
        "PID", "PPID", "PGID", "SID", "STATE", "THR", "UID", "MAPPED", "PRESENT", "LAZY", "COMMAND",
    ])];
    for task in tasks {
        let memory = task.memory.clone().unwrap_or_default();
        let state = match task.exit_code {
            Some(code) => match code & 0x7f {
                0 => format!("{} (exit {})", task.state, code >> 8 & 0xff),
                signal => format!("{} (signal {signal})", task.state),
            },
            None => String::from(task.state),
        };
        let uid = task.threads.first().and_then(|thread| thread.uid);
        rows.push(vec![
            task.pid.to_string(),
            task.ppid.to_string(),
            task.pgid.to_string(),
            task.sid.to_string(),
            state,
            task.threads.len().to_string(),
            uid.map_or_else(|| String::from("-"), |uid| uid.to_string()),
            bytes(memory.mapped),
            bytes(memory.content.present),
            bytes(memory.content.elsewhere),
            format!("{}{}", "  ".repeat(task.depth), task.comm),
        ]);
    }
    table(out, &rows);
    for task in tasks.iter().filter(|task| task.threads.len() > 1) {
        let names: Vec<_> = task
            .threads
            .iter()
            .map(|t| format!("{} {}", t.tid, t.comm.as_deref().unwrap_or("?")))
            .collect();
        let _ = writeln!(out, "  threads of {}: {}", task.pid, names.join(", "));
    }
}

fn memory(out: &mut String, report: &Report, detailed: bool) {
    let mut rows = vec![row(&[
        "OF",
        "AREAS",
        "MAPPED",
        "PRESENT",
        "ELSEWHERE",
        "PARENT",
        "ZERO",
        "PAGES FILE",
    ])];
    let sums = |of: String, memory: &Memory| {
        vec![
            of,
            memory.areas.len().to_string(),
            bytes(memory.mapped),
            bytes(memory.content.present),
            bytes(memory.content.elsewhere),
            bytes(memory.content.parent),
            bytes(memory.content.zero),
            memory
                .pages_id
                .map_or_else(|| String::from("-"), |id| format!("pages-{id}.img")),
        ]
    };
    for task in &report.tasks {
        if let Some(memory) = &task.memory {
            rows.push(sums(format!("pid {}", task.pid), memory));
        }
    }
    for shared in &report.shared_memory {
        rows.push(sums(format!("shared memory {}", shared.id), shared));
    }
    table(out, &rows);
    if !detailed {
        return;
    }
    for task in &report.tasks {
        let Some(memory) = &task.memory else { continue };
        let _ = writeln!(out, "  areas of {}", task.pid);
        let mut rows = Vec::new();
        for area in &memory.areas {
            rows.push(vec![
                format!("{}-{}", &area.start[2..], &area.end[2..]),
                area.protection.clone(),
                bytes(area.bytes),
                bytes(area.content.present),
                bytes(area.content.elsewhere),
                area.kind.clone(),
                area.name.clone(),
            ]);
        }
        table(out, &rows);
    }
}

fn descriptors(out: &mut String, tasks: &[Task]) {
    let mut rows = vec![row(&["PID", "FD", "KIND", "FLAGS", "POSITION", "NAME"])];
    for task in tasks {
        let places = [("cwd", &task.cwd), ("root", &task.root), ("exe", &task.exe)];
        for (what, path) in places {
            if let Some(path) = path {
                rows.push(row(&[&task.pid.to_string(), what, "file", "", "", path]));
            }
        }
        for fd in &task.descriptors {
            let cloexec = if fd.close_on_exec { " cloexec" } else { "" };
            let position = fd.position.map_or_else(String::new, |pos| pos.to_string());
            rows.push(vec![
                task.pid.to_string(),
                fd.fd.to_string(),
                String::from(fd.kind),
                format!("{}{cloexec}", fd.flags),
                position,
                fd.name.clone(),
            ]);
        }
    }
    table(out, &rows);
}

fn namespaces(out: &mut String, report: &Report) {
    let mut rows = vec![row(&["KIND", "ID", "TASKS", "CONTENT"])];
    let mut seen: Vec<(&str, u32)> = Vec::new();
    for task in &report.tasks {
        for &space in &task.namespaces {
            if !seen.contains(&space) {
                seen.push(space);
            }
        }
    }
    for space in &report.namespaces {
        if !seen.contains(&(space.kind, space.id)) {
            seen.push((space.kind, space.id));
        }
    }
    for (kind, id) in seen {
        let users = report
            .tasks
            .iter()
            .filter(|task| task.namespaces.contains(&(kind, id)))
            .count();
        let saved = report
            .namespaces
            .iter()
            .find(|space| space.kind == kind && space.id == id);
        let content = match saved {
            Some(space) => &space.content,
            None if report.image.callers.contains(&(kind, id)) => "that of whoever saved it",
            None => "nothing saved",
        };
        rows.push(row(&[kind, &id.to_string(), &users.to_string(), content]));
    }
    table(out, &rows);
}

fn mounts(out: &mut String, report: &Report) {
    let mut rows = vec![row(&[
        "NS",
        "ID",
        "PARENT",
        "MOUNTPOINT",
        "TYPE",
        "SOURCE",
        "ROOT",
        "OPTIONS",
        "CONTENT",
    ])];
    for mount in &report.mounts {
        let content = match (&mount.external, mount.content_bytes) {
            (Some(key), _) => format!("from outside: {key}"),
            (None, Some(len)) => format!("archive of {}", bytes(len)),
            (None, None) => String::new(),
        };
        rows.push(vec![
            mount.namespace.to_string(),
            mount.id.to_string(),
            mount.parent.to_string(),
            mount.mountpoint.clone(),
            mount.fstype.clone(),
            mount.source.clone(),
            mount.root.clone(),
            mount.options.clone(),
            content,
        ]);
    }
    table(out, &rows);
}

fn cgroups(out: &mut String, report: &Report) {
    let mut rows = vec![row(&["SET", "HIERARCHY", "PATH", "TASKS"])];
    for place in &report.cgroups {
        let members: Vec<_> = report
            .tasks
            .iter()
            .filter(|task| task.threads.iter().any(|t| t.cgroup_set == Some(place.set)))
            .map(|task| task.pid.to_string())
            .collect();
        for (name, path) in &place.places {
            let name = if name.is_empty() { "(v2)" } else { name };
            rows.push(row(&[
                &place.set.to_string(),
                name,
                path,
                &members.join(" "),
            ]));
        }
    }
    table(out, &rows);
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| String::from(*cell)).collect()
}

/// Columns as wide as their widest cell; control characters are not printed.
fn table(out: &mut String, rows: &[Vec<String>]) {
    let rows: Vec<Vec<String>> = rows
        .iter()
        .map(|row| row.iter().map(|cell| printable(cell)).collect())
        .collect();
    let columns = rows.iter().map(Vec::len).max().unwrap_or_default();
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or_default()
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in &rows {
        let mut line = String::from(" ");
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, " {cell:width$} ");
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
}

/// Names come from the image: no escape sequence may reach the terminal.
fn printable(text: &str) -> String {
    if text.chars().any(char::is_control) {
        text.escape_debug().to_string()
    } else {
        String::from(text)
    }
}

/// A length for people.
fn bytes(len: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if len == 0 {
        return String::from("-");
    }
    if len < 1024 {
        return format!("{len} B");
    }
    let mut rest = len;
    let mut tenths = 0;
    let mut unit = "";
    for next in units {
        tenths = rest % 1024 * 10 / 1024;
        rest /= 1024;
        unit = next;
        if rest < 1024 {
            break;
        }
    }
    if tenths == 0 || rest >= 100 {
        format!("{rest} {unit}")
    } else {
        format!("{rest}.{tenths} {unit}")
    }
}
