//! Prints the sample configuration file, which is checked in as `conf/tidemill.toml`.

fn main() {
    print!("{}", tidemill_config::sample());
}
