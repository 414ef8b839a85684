//! The demo runs to its end; it checks each step itself.

use std::process::Command;

#[test]
fn the_demo_goes_as_told() {
    harness::require_root!();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--fast")
        .env("MILLRACE_BIN", harness::millrace())
        .output()
        .expect("running the demo");
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{said}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(said.contains("All as told"), "{said}");
    assert!(
        !said.contains('\x1b'),
        "no colours where there is no terminal: {said}"
    );
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
