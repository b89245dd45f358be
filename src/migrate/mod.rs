//! Phases, journal, source, destination, switch-over.
