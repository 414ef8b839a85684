//! Connections from outside to a pod's own address, which are not translated.

use super::*;

#[test]
fn a_connection_to_a_pod_itself_begins_anew_by_the_port_of_one_that_is_over() {
    let fake = masquerading();
    let (client, pod) = ((OUTSIDE, 40_000), (POD, 8080));
    let (request, reply) = (
        packet(protocol::TCP, client, pod),
        packet(protocol::TCP, pod, client),
    );
    let pass = Decision::Pass(Reason::NotOurs);
    for again in 0..3 {
        for (is_reply, flags) in [
            (false, TCP_SYN),
            (true, TCP_SYN | TCP_ACK),
            (false, TCP_ACK),
            (false, TCP_RST),
        ] {
            let decision = if is_reply {
                leaving_node(&fake, &with_flags(reply, flags)).0
            } else {
                let of_rst = u32::from(flags == TCP_RST);
                let request = Headers {
                    sequence: of_rst,
                    ..with_flags(request, flags)
                };
                entering(&fake, &request, Entry::Uplink).0
            };
            assert_eq!(decision, pass, "connection {again}, {flags}");
        }
    }
}

#[test]
fn a_connection_that_a_pod_opens_is_no_reply_to_what_came_from_outside() {
    let fake = masquerading();
    let forged = packet(protocol::TCP, (OUTSIDE, 443), (POD, 40_000));
    let _ = entering(&fake, &with_flags(forged, TCP_SYN), Entry::Uplink);
    let request = packet(protocol::TCP, (POD, 40_000), (OUTSIDE, 443));
    let (flow, _) = translated(leaving_node(&fake, &with_flags(request, TCP_SYN)));
    assert_eq!(flow.src, ip(NODE));
}
