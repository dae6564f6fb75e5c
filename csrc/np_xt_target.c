#include "np_xt_target.h"

#include <errno.h>
#include <linux/netfilter/x_tables.h>
#include <linux/netfilter/xt_NFLOG.h>
#include <linux/netfilter_ipv4/ip_tables.h>
#include <linux/netfilter_ipv4/ipt_REJECT.h>
#include <linux/netfilter_ipv6/ip6_tables.h>
#include <linux/netfilter_ipv6/ip6t_REJECT.h>

_Static_assert(sizeof(struct xt_nflog_info) == 76, "struct xt_nflog_info");
_Static_assert(sizeof(struct ipt_reject_info) == 4 && sizeof(struct ip6t_reject_info) == 4, "struct ipt_reject_info");
_Static_assert(sizeof(((struct np_xt_payload *)0)->own) >= sizeof(struct xt_nflog_info), "payloads");

/* A standard target, with a verdict. */
static void np_standard(struct np_xt_payload *payload, int32_t verdict)
{
    memcpy(payload->own, &verdict, sizeof(verdict));
    payload->data = (struct np_pack_text){.at = payload->own, .size = sizeof(verdict)};
}

static void np_verdict(struct np_pack *pack, uint32_t fields, struct np_xt_payload *payload)
{
    while (fields-- && np_pack_key(pack)) {
        struct np_pack_text name = np_pack_text(pack);

        if (np_pack_same(name, "ACCEPT"))
            np_standard(payload, -NF_ACCEPT - 1);
        else if (np_pack_same(name, "DROP"))
            np_standard(payload, -NF_DROP - 1);
        else if (np_pack_same(name, "RETURN"))
            np_standard(payload, XT_RETURN);
        else
            np_pack_fail(pack, -ERANGE);
    }
}

/* A jump or goto: the place is filled in by whoever knows it. */
static void np_jump(struct np_pack *pack, uint32_t fields, struct np_xt_payload *payload)
{
    while (fields-- && np_pack_key(pack)) {
        payload->to = np_pack_text(pack);
        if (payload->to.size > NP_CHAIN_NAME || memchr(payload->to.at, 0, payload->to.size))
            np_pack_fail(pack, -ERANGE);
    }
    if (!payload->to.size)
        np_pack_fail(pack, -ERANGE);
    payload->is_open = 1;
    np_standard(payload, 0);
}

static void np_reject(struct np_pack *pack, uint32_t fields, struct np_xt_payload *payload, int family)
{
    static const struct {
        const char *name;
        int family;
        uint32_t with;
    } answers[] = {
        {"icmp-net-unreachable", 4, IPT_ICMP_NET_UNREACHABLE},
        {"icmp-host-unreachable", 4, IPT_ICMP_HOST_UNREACHABLE},
        {"icmp-proto-unreachable", 4, IPT_ICMP_PROT_UNREACHABLE},
        {"icmp-port-unreachable", 4, IPT_ICMP_PORT_UNREACHABLE},
        {"icmp-net-prohibited", 4, IPT_ICMP_NET_PROHIBITED},
        {"icmp-host-prohibited", 4, IPT_ICMP_HOST_PROHIBITED},
        {"icmp-admin-prohibited", 4, IPT_ICMP_ADMIN_PROHIBITED},
        {"tcp-reset", 4, IPT_TCP_RESET},
        {"icmp6-no-route", 6, IP6T_ICMP6_NO_ROUTE},
        {"icmp6-adm-prohibited", 6, IP6T_ICMP6_ADM_PROHIBITED},
        {"icmp6-addr-unreachable", 6, IP6T_ICMP6_ADDR_UNREACH},
        {"icmp6-port-unreachable", 6, IP6T_ICMP6_PORT_UNREACH},
        {"icmp6-policy-fail", 6, IP6T_ICMP6_POLICY_FAIL},
        {"icmp6-reject-route", 6, IP6T_ICMP6_REJECT_ROUTE},
        {"tcp-reset", 6, IP6T_TCP_RESET},
    };

    while (fields-- && np_pack_key(pack)) {
        struct np_pack_text name = np_pack_text(pack);
        size_t i = 0;

        while (i < sizeof(answers) / sizeof(answers[0]) &&
               !(answers[i].family == family && np_pack_same(name, answers[i].name)))
            i++;
        if (i == sizeof(answers) / sizeof(answers[0])) {
            np_pack_fail(pack, -ERANGE);
            return;
        }
        memcpy(payload->name, "REJECT", sizeof("REJECT"));
        memcpy(payload->own, &answers[i].with, sizeof(answers[i].with));
        payload->data = (struct np_pack_text){.at = payload->own, .size = sizeof(struct ipt_reject_info)};
    }
}

static void np_nflog(struct np_pack *pack, uint32_t fields, struct np_xt_payload *payload)
{
    struct xt_nflog_info info = {0};

    while (fields-- && np_pack_key(pack))
        if (np_pack_is(pack, "group"))
            info.group = (uint16_t)np_pack_int(pack, 0, UINT16_MAX);
        else if (np_pack_is(pack, "prefix"))
            np_xt_copy_text(pack, info.prefix, sizeof(info.prefix) - 1);
        else if (np_pack_is(pack, "size"))
            info.len = (uint32_t)np_pack_int(pack, 0, UINT32_MAX);
        else if (np_pack_is(pack, "threshold"))
            info.threshold = (uint16_t)np_pack_int(pack, 0, UINT16_MAX);
        else
            np_pack_fail(pack, -EPROTO);
    info.flags = info.len ? XT_NFLOG_F_COPY_LEN : 0;
    memcpy(payload->name, "NFLOG", sizeof("NFLOG"));
    memcpy(payload->own, &info, sizeof(info));
    payload->data = (struct np_pack_text){.at = payload->own, .size = sizeof(info)};
}

/* Reads a target, which is written when the matches are there. `payload` must stay where it is. */
void np_xt_read_target(struct np_pack *pack, int family, struct np_xt_payload *payload)
{
    uint32_t fields;
    struct np_pack_text kind = np_xt_kind(pack, &fields);

    if (np_pack_same(kind, "Verdict")) {
        np_verdict(pack, fields, payload);
    } else if (np_pack_same(kind, "Jump")) {
        np_jump(pack, fields, payload);
    } else if (np_pack_same(kind, "Goto")) {
        payload->is_goto = 1;
        np_jump(pack, fields, payload);
    } else if (np_pack_same(kind, "Continue") && !fields) {
        payload->is_open = 1;
        np_standard(payload, 0);
    } else if (np_pack_same(kind, "Reject")) {
        np_reject(pack, fields, payload, family);
    } else if (np_pack_same(kind, "Nflog")) {
        np_nflog(pack, fields, payload);
    } else if (np_pack_same(kind, "OpaqueTarget")) {
        np_xt_read_opaque(pack, fields, payload);
    } else {
        np_pack_fail(pack, -EPROTO);
    }
    if (!payload->data.at)
        np_pack_fail(pack, -EPROTO);
}
