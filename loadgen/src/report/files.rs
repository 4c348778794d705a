//! Files that are there whole or not at all, and CSV.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use crate::commands::Failure;
use crate::result::RunResult;

/// Under a temporary name beside it, then renamed. What is no regular file (`/dev/stdout`, a pipe) is written in place.
pub fn write_whole(path: &Path, text: &str) -> Result<(), Failure> {
    let failure =
        |error| Failure(format!("cannot write {}: {error}; name another place, or make room there", path.display()));
    if fs::metadata(path).is_ok_and(|found| !found.is_file()) {
        return fs::write(path, text).map_err(failure);
    }
    let temporary = temporary(path);
    let written = File::create(&temporary)
        .and_then(|mut file| file.write_all(text.as_bytes()).and_then(|()| file.sync_all()))
        .and_then(|()| fs::rename(&temporary, path));
    if written.is_err() {
        // What is left of it would be taken for a result.
        let _ = fs::remove_file(&temporary);
    }
    written.map_err(failure)
}

fn temporary(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}.partial", std::process::id()));
    path.with_file_name(name)
}

/// That a file of this name can be made.
pub fn check(path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    if path.is_dir() {
        return Err(Failure(format!("cannot write {shown}: it is a folder; name a file in it")));
    }
    if path.exists() && !path.is_file() {
        return Ok(());
    }
    let temporary = temporary(path);
    match File::create(&temporary) {
        Ok(_) => {
            let _ = fs::remove_file(&temporary);
            Ok(())
        }
        Err(error) => Err(Failure(format!("cannot write {shown}: {error}; name another place"))),
    }
}

pub fn csv(result: &RunResult) -> String {
    let mut text = String::from(
        "at_s,due,sent,acknowledged,refused,unknown,latency_p50_us,latency_p99_us,latency_max_us,lateness_p99_us\n",
    );
    for second in &result.seconds {
        let s = second;
        writeln!(
            text,
            "{},{},{},{},{},{},{},{},{},{}",
            s.at_s,
            s.due,
            s.sent,
            s.acknowledged,
            s.refused,
            s.unknown,
            s.p50_us,
            s.p99_us,
            s.max_us,
            s.lateness_p99_us
        )
        .expect("a String takes everything");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::fixture;

    #[test]
    fn a_file_is_there_whole_or_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out.json");
        write_whole(&path, "first").unwrap();
        write_whole(&path, "second").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing temporary is left");
        // A place where nothing can be made: the folder is a file.
        let fault = write_whole(&path.join("x"), "third").unwrap_err().to_string();
        assert!(fault.starts_with(&format!("cannot write {}/x: ", path.display())), "{fault}");
    }

    #[test]
    fn what_cannot_be_written_is_said_before() {
        let dir = tempfile::tempdir().unwrap();
        check(&dir.path().join("new.json")).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "the check leaves nothing");
        assert!(check(dir.path()).unwrap_err().to_string().contains("it is a folder"));
        assert!(check(&dir.path().join("no/new.json")).unwrap_err().to_string().contains("No such file"));
    }

    #[test]
    fn what_is_no_regular_file_is_not_replaced() {
        write_whole(Path::new("/dev/null"), "text").unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn csv_has_a_line_a_second() {
        let text = csv(&fixture::steady("a", 3));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[1].split(',').count(), lines[0].split(',').count());
        assert!(lines[2].starts_with("1,1000,1000,998,2,0,"), "{}", lines[2]);
    }
}
