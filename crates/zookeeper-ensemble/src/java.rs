//! Which Java and which jars. It never downloads any.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::EnsembleError;

/// Where Debian has ZooKeeper; its manifest names what it needs at least.
const ZOOKEEPER_JAR: &str = "/usr/share/java/zookeeper.jar";
/// Used where they are there: the first writes the log to the standard error, TLS takes the others.
const MORE_JARS: &str = "/usr/share/java/slf4j-simple.jar:/usr/share/java/netty-codec.jar:/usr/share/java/netty-resolver.jar";

const MAIN: &str = "org.apache.zookeeper.server.quorum.QuorumPeerMain";

/// What starts a server.
#[derive(Clone, Debug)]
pub(crate) struct Java {
    java: String,
    class_path: String,
}

impl Java {
    pub(crate) fn find() -> Result<Self, EnsembleError> {
        let java = env::var("TIDEMILL_JAVA").unwrap_or_else(|_| "java".into());
        let class_path = match env::var("TIDEMILL_ZOOKEEPER_CLASSPATH") {
            Ok(class_path) => class_path,
            Err(_) if Path::new(ZOOKEEPER_JAR).exists() => format!("{ZOOKEEPER_JAR}:{MORE_JARS}"),
            Err(_) => {
                let jar = PathBuf::from(ZOOKEEPER_JAR);
                return Err(EnsembleError::NoZooKeeper { jar });
            }
        };
        Ok(Self { java, class_path })
    }

    /// Whether it can be run.
    pub(crate) fn check(&self) -> Result<(), EnsembleError> {
        let output = Command::new(&self.java).arg("-version").output();
        output
            .map(|_| ())
            .map_err(|source| self.missing(&[], source))
    }

    /// The command of a server: small, and soon there.
    pub(crate) fn server(
        &self,
        launcher: &[String],
        properties: &[(String, String)],
        configuration: &Path,
    ) -> Command {
        let mut words = launcher.iter().chain([&self.java]);
        let mut command = Command::new(words.next().expect("there is at least Java"));
        command.args(words);
        command.args([
            "-Xms32m",
            "-Xmx128m",
            "-XX:+UseSerialGC",
            "-XX:TieredStopAtLevel=1",
            "-Xshare:auto",
            "-XX:-UsePerfData",
            "-Djava.net.preferIPv4Stack=false",
            "-Dzookeeper.jmx.log4j.disable=true",
            // The machine does not crash in tests, so what a killed server has written is there.
            "-Dzookeeper.forceSync=no",
            "-Dzookeeper.preAllocSize=1024",
            "-Dorg.slf4j.simpleLogger.showDateTime=true",
            "-Dorg.slf4j.simpleLogger.dateTimeFormat=HH:mm:ss.SSS",
        ]);
        for (name, value) in properties {
            command.arg(format!("-D{name}={value}"));
        }
        command.args(["-cp", &self.class_path, MAIN]);
        command.arg(configuration);
        command
    }

    /// Why the command did not start.
    pub(crate) fn missing(&self, launcher: &[String], source: std::io::Error) -> EnsembleError {
        EnsembleError::NoJava {
            java: launcher.first().unwrap_or(&self.java).clone(),
            source,
        }
    }
}
