//! Membership in control groups and their properties.
