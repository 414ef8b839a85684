//! The demo runs to its end; it checks each step itself.

use std::process::Command;

#[test]
fn the_demo_passes_all_its_checks() {
    harness::require_root!();
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .arg("--fast")
        .env("MILLRACE_BIN", harness::millrace())
        .output()
        .expect("running the demo");
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}\n{printed}{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(printed.contains("All checks passed"), "{printed}");
    assert!(
        !printed.contains('\x1b'),
        "no colours where there is no terminal: {printed}"
    );
    assert!(
        output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}
