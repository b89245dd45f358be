//! Our protocol: frames, a sans-IO session, transport beside it.
