//! Picks the face from `argv[0]` and `argv[1]`; errors become exit codes.

use std::process::ExitCode;

fn main() -> ExitCode {
    dunlin::face::main()
}
