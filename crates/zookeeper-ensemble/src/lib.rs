//! ZooKeeper servers on this machine, for tests. It never configures one for production.
