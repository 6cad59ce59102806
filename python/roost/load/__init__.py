"""The load generator: begin/commit pairs in open or closed loop, and a recorded trace at a chosen speed."""
