"""The cases of SEMANTICS: an id begins with the number of its line. The world and what a case is are in `tests.semantics`."""

from __future__ import annotations

from netpol.model import PROTOCOL_NUMBERS, Namespace, Pod, Policy, parse_address
from tests.semantics import HERE, Case

ONE_PORT = "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]}]}"
FROM_WEB = "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: web}}}]}]}"
DENY_IN, DENY_OUT = "{podSelector: {}, policyTypes: [Ingress]}", "{podSelector: {}, policyTypes: [Egress]}"

CASES = (
    Case(
        "1-missing-from-is-every-source", {"x/p": ONE_PORT}, "z/web x/web 80/TCP yes, 203.0.113.1 x/web 80/TCP yes, z/web x/web 81/TCP no"
    ),
    Case(
        "1-empty-from-and-ports-are-everything",
        {"x/p": "{podSelector: {}, ingress: [{from: [], ports: []}]}"},
        "z/web x/web 80/TCP yes, 2001:db8::9 x/web6 80/UDP yes",
    ),
    Case(
        "1-missing-to-is-every-destination", {"x/p": "{podSelector: {}, egress: [{ports: [{port: 80}]}]}"}, "x/web 203.0.113.1 80/TCP yes"
    ),
    Case("1-a-rule-of-nothing-allows-all", {"x/p": "{podSelector: {}, ingress: [{}]}"}, "z/web x/web 1/SCTP yes, z/web x/web ICMP yes"),
    Case(
        "1-a-rule-for-all-beside-rules-for-some",
        {
            "x/p": "{podSelector: {matchLabels: {app: db}}, ingress: [{}, {from: [{podSelector: {}}]}, {ports: [{port: 80}]}]}",
            "x/q": "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 80}]},"
            " {from: [{podSelector: {}}], ports: [{port: 80}]}]}",
        },
        "z/web x/db 81/TCP yes, z/web x/db ICMP yes, z/web x/web 80/TCP yes, x/db x/web 81/TCP no",
    ),
    Case(
        "1-no-rules-deny-all",
        {"x/p": "{podSelector: {}, ingress: []}"},
        "x/db x/web 80/TCP no, z/web x/web ICMP no, x/web z/web 80/TCP yes",
    ),
    Case("1-no-egress-rules-deny-all", {"x/p": DENY_OUT}, "x/web x/db 80/TCP no, x/web6 2001:db8::9 80/UDP no, z/web x/web 80/TCP yes"),
    Case(
        "2-both-ports-and-from",
        {"x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 80}]}]}"},
        "x/db x/web 80/TCP yes, x/db x/web 81/TCP no, x/bare x/web 80/TCP no",
    ),
    Case(
        "3-podSelector-alone-is-the-own-namespace", {"x/p": FROM_WEB}, "x/web x/db 80/TCP yes, y/web x/db 80/TCP no, z/web x/db 80/TCP no"
    ),
    Case(
        "4-both-selectors-in-one-peer-are-and",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: y}},"
            " podSelector: {matchLabels: {app: web}}}]}]}"
        },
        "y/web x/db 80/TCP yes, y/db x/db 80/TCP no, x/web x/db 80/TCP no, z/web x/db 80/TCP no",
    ),
    Case(
        "4-two-items-are-or",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {name: y}}},"
            " {podSelector: {matchLabels: {app: web}}}]}]}"
        },
        "y/web x/db 80/TCP yes, y/db x/db 80/TCP yes, x/web x/db 80/TCP yes, z/web x/db 80/TCP no, x/bare x/db 80/TCP no",
    ),
    Case(
        "5-empty-podSelector-is-all-of-the-own-namespace",
        {"x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}"},
        "x/bare x/web 80/TCP yes, y/web x/web 80/TCP no, 203.0.113.1 x/web 80/TCP no",
    ),
    Case(
        "5-empty-namespaceSelector-is-all-pods-and-nothing-else",
        {"x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"},
        "x/bare x/web 80/TCP yes, z/web6 x/web6 80/TCP yes, 203.0.113.1 x/web 80/TCP no",
    ),
    Case(
        "5-empty-podSelector-of-a-policy-is-every-pod-of-its-namespace",
        {"x/p": DENY_IN},
        "z/web x/web 80/TCP no, z/web x/bare 80/TCP no, z/web y/web 80/TCP yes",
    ),
    Case("6-unset-is-ingress-only-without-egress-rules", {"x/p": "{podSelector: {}}"}, "z/web x/web 80/TCP no, x/web z/web 80/TCP yes"),
    Case(
        "6-unset-is-both-with-egress-rules",
        {"x/p": "{podSelector: {}, egress: [{ports: [{port: 53}]}]}"},
        "z/web x/web 53/TCP no, x/web z/web 53/TCP yes, x/web z/web 80/TCP no",
    ),
    Case(
        "6-rules-of-a-direction-that-is-not-named-are-inert",
        {"x/p": "{podSelector: {}, policyTypes: [Egress], ingress: [{ports: [{port: 80}]}], egress: []}"},
        "z/web x/web 81/TCP yes, x/web z/web 80/TCP no",
    ),
    Case(
        "7-a-rule-of-one-direction-opens-nothing-in-the-other",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress], egress: [{}]}"},
        "x/web z/web 80/TCP yes, z/web x/web 80/TCP no",
    ),
    Case(
        "8-both-ends-must-allow",
        {"x/in": FROM_WEB, "y/out": "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 10.0.0.1/32}}]}]}", "x/to-web": ONE_PORT},
        "y/web x/web 80/TCP yes, y/web x/db 80/TCP no, z/web x/web 80/TCP yes, y/web x/web 81/TCP no",
    ),
    Case(
        "8-between-two-pods-of-one-policy",
        {
            "x/p": "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{from: [{podSelector: {matchLabels: {app: db}}}]}],"
            " egress: [{to: [{podSelector: {matchLabels: {app: web}}}]}]}"
        },
        "x/db x/web 80/TCP yes, x/web x/db 80/TCP no, x/db x/bare 80/TCP no, x/bare x/web 80/TCP no",
    ),
    *(
        Case(
            f"9-policies-add-up-{'-'.join(order)}",
            {f"x/{name}": {"deny": DENY_IN, "eighty": ONE_PORT, "web": FROM_WEB}[name] for name in order},
            "z/web x/web 80/TCP yes, x/web x/db 443/TCP yes, z/web x/web 443/TCP no, z/web x/db 80/TCP no",
        )
        for order in (("deny", "eighty", "web"), ("web", "eighty", "deny"), ("eighty", "deny", "web"))
    ),
    *(
        Case(
            f"10-{operator}-matches-what-lacks-the-key",
            {
                "x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {matchExpressions:"
                f" [{{key: tier, operator: {operator}{values}}}]}}}}]}}]}}"
            },
            "x/bare x/web 80/TCP yes, x/four x/web 80/TCP yes, x/db x/web 80/TCP no",
        )
        for operator, values in (("NotIn", ", values: [data]"), ("DoesNotExist", ""))
    ),
    Case(
        "10-a-namespace-without-the-label",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchExpressions:"
            " [{key: team, operator: NotIn, values: [blue]}]}}]}]}"
        },
        "z/web x/web 80/TCP yes, y/web x/web 80/TCP no, late/web x/web 80/TCP no",
    ),
    Case(
        "11-a-namespace-that-is-not-known-matches-nothing",
        {"x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", "late/p": DENY_IN},
        "late/web x/web 80/TCP no, z/web late/web 80/TCP yes",
    ),
    Case(
        "11-nor-do-its-pods-have-named-ports",
        {"x/p": "{podSelector: {}, egress: [{ports: [{port: http}]}]}"},
        "x/web late/web 7070/TCP no, x/web y/web 9090/TCP yes",
    ),
    Case(
        "11-until-it-is-known",
        {"x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", "late/p": DENY_IN},
        "late/web x/web 80/TCP yes, z/web late/web 80/TCP no",
        events=(Namespace("late"),),
    ),
    Case(
        "11-and-after-it-is-gone",
        {"x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}", "y/p": DENY_IN},
        "y/web x/web 80/TCP no, x/web y/web 80/TCP yes",
        events=((Namespace, "", "y"),),
    ),
    Case(
        "12-an-invalid-peer-is-not-everyone",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/99}}]}]}"},
        "z/web x/web 80/TCP no, x/db x/web 80/TCP no",
        errors=1,
    ),
    Case(
        "12-nobody-is-not-everyone",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: nobody}}}]}], egress: [{to:"
            " [{namespaceSelector: {matchLabels: {no: such}}}]}]}"
        },
        "z/web x/web 80/TCP no, x/web z/web 80/TCP no, x/db6 x/web6 80/TCP no",
    ),
    Case(
        "13-except-belongs-to-its-own-block",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.2.0/24]}},"
            " {ipBlock: {cidr: 10.0.1.2/31}}, {podSelector: {}}]}]}"
        },
        "10.9.9.9 x/web 80/TCP yes, y/web x/web 80/TCP no, y/db x/web 80/TCP yes, z/web x/web 80/TCP no, x/db x/web 80/TCP yes",
    ),
    Case(
        "13-a-peer-allows-what-a-block-excepts",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}},"
            " {namespaceSelector: {matchLabels: {name: y}}}]}]}"
        },
        "y/web x/web 80/TCP yes, 10.0.1.9 x/web 80/TCP no, z/web x/web 80/TCP yes",
    ),
    Case(
        "13-another-rule-allows-what-a-block-excepts-on-its-port",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}]},"
            " {from: [{ipBlock: {cidr: 10.0.1.0/24}}], ports: [{port: 80}]}]}"
        },
        "y/web x/web 80/TCP yes, y/web x/web 81/TCP no, z/web x/web 81/TCP yes",
    ),
    Case(
        "14-host-bits-are-ignored",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.1.77/24, except: [10.0.1.3/31]}}]}]}"},
        "y/web x/web 80/TCP yes, 10.0.1.255 x/web 80/TCP yes, 10.0.1.2 x/web 80/TCP no, z/web x/web 80/TCP no",
    ),
    Case(
        "14-everything-of-a-family",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}"},
        "203.0.113.1 x/web 80/TCP yes, 1.1.1.1 x/web ICMP yes, 2001:db8::9 x/web6 80/TCP no",
    ),
    Case(
        "14-everything-but",
        {"x/p": "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: '::/0', except: ['fd00::/16', '::/1']}}]}]}"},
        "x/web6 8000::1 80/TCP yes, x/web6 2001:db8::9 80/TCP no, x/web6 z/web6 80/TCP no, x/web 203.0.113.1 80/TCP no",
    ),
    Case(
        "14-single-addresses",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.1.1/32}}, {ipBlock: {cidr: 'fd00::1:2/128'}}]}]}"},
        "y/web x/web 80/TCP yes, y/db x/web 80/TCP no, y/db6 x/web6 80/TCP yes, y/web6 x/web6 80/TCP no",
    ),
    Case(
        "14-overlapping-and-repeated-blocks",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24]}}, "
            " {ipBlock: {cidr: 10.0.0.0/15, except: [10.0.1.0/25, 10.0.1.0/26]}}, {ipBlock: {cidr: 10.0.0.0/16, except: [10.0.1.0/24]}}]}]}"
        },
        "y/web x/web 80/TCP no, 10.0.1.128 x/web 80/TCP yes, z/web x/web 80/TCP yes, 10.1.0.1 x/web 80/TCP yes, 10.2.0.1 x/web 80/TCP no",
    ),
    Case(
        "14-an-IPv4-mapped-block-is-one-of-IPv4",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: '::ffff:10.0.1.0/120', except: ['::ffff:a00:102/128']}}]}]}"},
        "y/web x/web 80/TCP yes, y/db x/web 80/TCP no, z/web x/web 80/TCP no, y/web6 x/web6 80/TCP no",
    ),
    Case(
        "15-pods-inside-a-block-match-it",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}]}],"
            " egress: [{to: [{ipBlock: {cidr: 'fd00::2:0/112'}}]}]}"
        },
        "y/web x/web 80/TCP yes, z/web x/web 80/TCP no, x/web6 z/web6 80/TCP yes, x/web6 y/web6 80/TCP no",
    ),
    Case(
        "16-each-family-by-itself",
        {"x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: four}}}]}]}"},
        "x/four x/web 80/TCP yes, z/web x/web 80/TCP no, z/web6 x/web6 80/TCP no, 2001:db8::9 x/web6 80/TCP no",
    ),
    Case(
        "16-a-block-of-one-family-says-nothing-of-the-other",
        {"x/p": "{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8}}]}]}"},
        "z/web x/web 80/TCP yes, z/web6 x/web6 80/TCP no",
    ),
    Case(
        "16-second-addresses-count",
        {"x/p": FROM_WEB},
        "x/web6 x/db6 80/TCP yes, x/db6 x/web6 80/TCP no, z/web6 x/bare6 80/TCP no",
    ),
    Case(
        "17-host-network-pods-are-no-peers",
        {"x/p": FROM_WEB, "y/p": "{podSelector: {}, egress: [{to: [{namespaceSelector: {}}]}]}"},
        "192.0.2.2 x/db 80/TCP no, y/web 192.0.2.2 80/TCP no",
    ),
    Case(
        "17-nor-targets",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
        "z/web 192.0.2.2 80/TCP yes, 192.0.2.2 z/web 80/TCP yes",
    ),
    Case(
        "18-finished-pods-are-no-peers-and-no-targets",
        {"x/p": FROM_WEB},
        "10.0.0.9 x/db 80/TCP no, z/web 10.0.0.9 80/TCP yes",
    ),
    Case(
        "18-a-pod-that-finishes",
        {"x/p": FROM_WEB},
        "x/web x/db 80/TCP no, z/web x/web 80/TCP yes",
        events=(Pod("x", "web", (("app", "web"),), HERE, (parse_address("10.0.0.1"),), finished=True),),
    ),
    Case(
        "19-the-new-holder-counts",
        {"x/p": FROM_WEB},
        "10.0.0.1 x/db 80/TCP no, x/web6 x/db6 80/TCP yes, z/web 10.0.0.1 80/TCP yes",
        events=(Pod("z", "new", (), HERE, (parse_address("10.0.0.1"),)),),
    ),
    Case(
        "19-when-the-old-one-is-deleted-later-too",
        {"x/p": FROM_WEB},
        "10.0.0.1 x/db 80/TCP yes, x/web6 x/db6 80/TCP no, z/web 10.0.0.1 80/TCP no",
        events=(Pod("x", "new", (("app", "web"),), HERE, (parse_address("10.0.0.1"),)), (Pod, "x", "web")),
    ),
    Case(
        "20-the-same-name-with-other-labels-and-addresses",
        {"x/p": FROM_WEB},
        "10.0.0.1 x/db 80/TCP no, 10.0.0.77 x/db 80/TCP yes, z/web 10.0.0.1 80/TCP yes, z/web 10.0.0.77 80/TCP no",
        events=(Pod("x", "web", (("app", "web"), ("v", "2")), HERE, (parse_address("10.0.0.77"),)),),
    ),
    Case(
        "20-a-deletion-that-was-missed",
        {"x/p": FROM_WEB, "z/p": DENY_IN},
        "10.0.0.1 x/db 80/TCP no, x/db z/web 80/TCP yes",
        events=((Pod, "x", "web"), (Policy, "z", "p"), (Pod, "x", "web")),
    ),
    Case(
        "21-the-port-of-the-backend-counts",
        {"x/p": "{podSelector: {matchLabels: {app: web}}, ingress: [{ports: [{port: 8080}]}]}"},
        "z/web x/web 8080/TCP yes, z/web x/web 80/TCP no, 203.0.113.1 x/web 8080/TCP yes",
    ),
    Case(
        "22-protocol-defaults-to-TCP",
        {"x/p": ONE_PORT},
        "z/web x/web 80/TCP yes, z/web x/web 80/UDP no, z/web x/web 80/SCTP no",
    ),
    *(
        Case(
            f"22-{protocol}",
            {"x/p": f"{{podSelector: {{}}, ingress: [{{ports: [{{port: 80, protocol: {protocol}}}]}}]}}"},
            ", ".join(
                f"z/web x/web {port}/{p} {'yes' if (port, p) == (80, protocol) else 'no'}"
                for port in (79, 80, 81)
                for p in PROTOCOL_NUMBERS
            ),
        )
        for protocol in PROTOCOL_NUMBERS
    ),
    Case(
        "22-a-protocol-without-a-port-is-all-its-ports-and-no-other",
        {"x/p": "{podSelector: {}, egress: [{ports: [{protocol: UDP}]}]}"},
        "x/web z/web 1/UDP yes, x/web z/web 65535/UDP yes, x/web z/web 53/TCP no, x/web z/web ICMP no",
    ),
    Case(
        "23-endPort",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 90}]}]}"},
        "z/web x/web 79/TCP no, z/web x/web 80/TCP yes, z/web x/web 90/TCP yes, z/web x/web 91/TCP no",
    ),
    Case(
        "23-more-than-fifteen-ports",
        {"x/p": f"{{podSelector: {{}}, ingress: [{{ports: [{', '.join(f'{{port: {port}}}' for port in range(1, 62, 2))}]}}]}}"},
        ", ".join(f"z/web x/web {port}/TCP {'yes' if port % 2 else 'no'}" for port in range(1, 63)),
    ),
    Case(
        "23-more-than-fifteen-places-in-ranges",
        {
            "x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}], ports: ["
            + ", ".join(f"{{port: {port}, endPort: {port + port % 20 // 10}}}" for port in range(10, 250, 10))
            + "]}]}"
        },
        ", ".join(f"z/web x/web {port}/TCP {'yes' if port % 10 == 0 or port % 20 == 11 else 'no'}" for port in range(10, 250)),
    ),
    Case(
        "24-a-named-port-is-each-pods-own",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: http}]}]}"},
        "z/web x/web 8080/TCP yes, z/web x/web 80/TCP no, z/web x/db 80/TCP yes, z/web x/db 8080/TCP no, z/web x/bare 80/TCP no",
    ),
    Case(
        "24-by-name-and-protocol",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: http, protocol: UDP}]}]}"},
        "z/web x/db 81/UDP yes, z/web x/db 80/UDP no, z/web x/db 80/TCP no, z/web x/web 8080/UDP no",
    ),
    Case(
        "24-a-named-port-of-an-egress-rule-is-the-destinations",
        {
            "x/p": "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{namespaceSelector:"
            " {matchLabels: {team: blue}}}], ports: [{port: http}]}]}"
        },
        "x/bare x/web 8080/TCP yes, x/bare y/web 9090/TCP yes, x/bare y/web 8080/TCP no, x/bare y/db 80/TCP no, x/web x/db 80/TCP yes",
    ),
    Case(
        "24-in-the-second-family-too",
        {"x/p": "{podSelector: {}, egress: [{ports: [{port: http}]}], ingress: [{ports: [{port: dns, protocol: UDP}]}]}"},
        "x/bare6 y/web6 9090/TCP yes, x/bare6 y/web6 80/TCP no, z/web6 x/web6 53/UDP yes, z/web6 x/web6 53/TCP no",
    ),
    Case(
        "24-a-block-with-a-named-port-is-its-pods",
        {
            "x/p": "{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/23, except: [10.0.0.2/32]}}],"
            " ports: [{port: http}]}]}"
        },
        "x/bare x/web 8080/TCP yes, x/bare y/web 9090/TCP yes, x/bare x/db 80/TCP no, x/bare 10.0.0.77 80/TCP no, x/bare z/web 80/TCP no",
    ),
    Case(
        "24-an-address-that-is-no-pod-has-no-named-ports",
        {"x/p": "{podSelector: {}, egress: [{to: [{ipBlock: {cidr: 203.0.113.0/24}}], ports: [{port: http}]}]}"},
        "x/bare 203.0.113.1 80/TCP no, x/bare 203.0.113.1 8080/TCP no",
    ),
    Case(
        "24-a-name-that-nobody-has-is-not-every-port",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress], ingress: [{ports: [{port: nope}]}], egress: [{ports: [{port: nope}]}]}"},
        "z/web x/web 8080/TCP no, z/web x/web 80/TCP no, x/web z/web 80/TCP no",
    ),
    Case(
        "24-a-name-beside-a-number",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: http}, {port: 443}]}]}"},
        "z/web x/web 8080/TCP yes, z/web x/web 443/TCP yes, z/web x/web 80/TCP no, z/web x/bare 443/TCP yes, z/web x/bare 80/TCP no",
    ),
    Case(
        "25-a-rule-with-ports-is-for-its-protocols-only",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: 80}, {protocol: UDP}, {protocol: SCTP}]}]}"},
        "z/web x/web ICMP no, z/web x/web GRE no, z/web x/web 80/TCP yes",
    ),
    Case(
        "25-a-rule-without-ports-is-for-every-protocol",
        {"x/p": "{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"},
        "z/web x/web ICMP yes, z/web x/web GRE yes, z/web x/web 1/SCTP yes, 203.0.113.1 x/web ICMP no",
    ),
    Case(
        "27-the-own-node-is-always-let-through",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
        "192.0.2.1 x/web 80/TCP yes, x/web 192.0.2.1 80/TCP yes, 2001:db8::1 x/web6 80/TCP yes",
        forwarded=False,
    ),
    Case(
        "27-other-nodes-are-not",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
        "192.0.2.2 x/web 80/TCP no, x/web 192.0.2.2 80/TCP no",
    ),
    Case(
        "28-a-pod-reaches-itself",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Egress]}"},
        "x/web x/web 80/TCP yes, x/web6 x/web6 80/TCP yes, x/db x/db ICMP yes, x/web x/db 80/TCP no",
    ),
    Case(
        "33-an-unreadable-podSelector-is-the-whole-namespace",
        {"x/p": "{podSelector: {matchLabel: {app: web}}, ingress: [{ports: [{port: 80}]}]}"},
        "z/web x/bare 81/TCP no, z/web x/bare 80/TCP yes, z/web y/web 81/TCP yes",
        errors=1,
    ),
    Case(
        "33-unreadable-policyTypes-are-both-directions",
        {"x/p": "{podSelector: {}, policyTypes: [Ingress, Outgress]}"},
        "z/web x/web 80/TCP no, x/web z/web 80/TCP no",
        errors=1,
    ),
    Case(
        "33-a-broken-rule-opens-nothing-and-the-others-stand",
        {"x/p": "{podSelector: {}, ingress: [{ports: [{port: 70000}]}, {ports: [{port: 80}]}]}", "y/p": ONE_PORT},
        "z/web x/web 80/TCP yes, z/web x/web 81/TCP no, z/web y/web 80/TCP yes, z/web y/web 81/TCP no",
        errors=1,
    ),
    Case(
        "33-a-field-that-is-not-known-restricts",
        {"x/p": "{podSelector: {}, ingress: [{from: [{podSelector: {}}], onlyOnSundays: true}]}"},
        "x/db x/web 80/TCP no",
        errors=1,
    ),
)
