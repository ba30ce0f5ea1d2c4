//! What a JobManager does about its leadership, a scenario each.
