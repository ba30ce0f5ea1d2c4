//! A TaskManager and the leaders it meets, over real connections, with the leaders in the test's hands.

mod driver;
mod leader;
mod link;
mod modules;
