//! Later fragments.

use super::*;

#[test]
fn fragments_follow_the_first_one() {
    let mut fake = Fake::node();
    fake.service(VIP, 53, protocol::UDP, &[("10.244.2.2", 53)]);
    let first = Headers {
        is_fragment: true,
        fragment_id: 77,
        ..packet(protocol::UDP, (POD, 40_000), (VIP, 53))
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(
        entering(&fake, &later, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    let (flow, _) = translated(entering(&fake, &first, Entry::Pod));
    let (same, reason) = translated(entering(&fake, &later, Entry::Pod));
    assert_eq!(
        (same.dst, same.sport, reason),
        (flow.dst, flow.sport, Reason::Established)
    );
    let other = Headers {
        fragment_id: 78,
        ..later
    };
    assert_eq!(
        entering(&fake, &other, Entry::Pod).0,
        Decision::Drop(Reason::FragmentBeforeFirst)
    );
    // Answers alike.
    let first = Headers {
        is_fragment: true,
        fragment_id: 5,
        ..answer(&flow, protocol::UDP)
    };
    let later = Headers {
        l4: 0,
        has_ports: false,
        sport: Port::new(0),
        dport: Port::new(0),
        ..first
    };
    assert_eq!(leaving(&fake, &later).0, Decision::Pass(Reason::NotOurs));
    let _ = translated(leaving(&fake, &first));
    assert_eq!(translated(leaving(&fake, &later)).0.src, ip(VIP));
}
