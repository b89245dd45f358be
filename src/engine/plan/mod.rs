//! Records to ordered steps per task; pure.
