//! mountinfo, mount(2), and the mount API of new: open_tree(2), move_mount(2).
