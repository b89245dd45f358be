//! /proc/PID/pagemap and PAGEMAP_SCAN.
