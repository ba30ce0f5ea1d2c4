//! What high availability promises, with three JobManagers, a ZooKeeper ensemble of three servers, and real signals. Tests
//! are called like the simulator's scenarios where there is one of the kind.

mod followers;
mod leader;
mod partitions;
mod recovery;
mod rolling;
mod savepoints;
mod submissions;
mod zookeeper;
