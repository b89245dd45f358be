//! Small calls on descriptors: fcntl, tee, splice, timerfd, memfd.
