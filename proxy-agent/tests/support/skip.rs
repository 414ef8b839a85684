//! Notes tests that cannot run on this machine.

/// Notes that the test of this thread cannot run here, and why.
pub fn note_skip(reason: &str) {
    use std::io::Write as _;
    let Some(path) = std::env::var_os("MILLRACE_SKIPS") else {
        return;
    };
    // libtest names the thread of a test after it.
    let thread = std::thread::current();
    let test = thread.name().expect("a test has a name");
    let file = std::fs::OpenOptions::new().create(true).append(true).open(path);
    let line = serde_json::json!({ "test": test, "reason": reason });
    writeln!(file.expect("the file of skips"), "{line}").expect("noting a skip");
}
