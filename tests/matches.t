# Options of matches, one rule a line: as given ; as `iptables-save` (legacy, 1.8.9) prints it, `=` for the same text,
# FAIL where iptables-restore or the kernel refuses it. `[table CHAIN]` where it is not [filter INPUT].
# The sets s1 (hash:ip counters), s2 (hash:ip,port) and s3 (hash:net) exist.

# tcp
-p tcp -m tcp --dport 80 ; =
-p tcp --dport 80 ; -p tcp -m tcp --dport 80
-p tcp -m tcp ! --dport 80:90 ! --sport 1: ; -p tcp -m tcp ! --sport 1:65535 ! --dport 80:90
-p tcp -m tcp --dport :90 --sport http ; -p tcp -m tcp --sport 80 --dport 0:90
-p tcp -m tcp --dport 0:65535 ; -p tcp -m tcp
-p tcp -m tcp ! --dport 0:65535 ; -p tcp -m tcp
-p tcp -m tcp --dport 90:80 ; FAIL
-p tcp -m tcp --dport 80:80 ; -p tcp -m tcp --dport 80
-p tcp -m tcp --dport 65536 ; FAIL
-p tcp -m tcp --dport 0x50 ; -p tcp -m tcp --dport 80
-p tcp -m tcp --dport 010 ; -p tcp -m tcp --dport 8
-p tcp -m tcp --dport -5 ; FAIL
-p tcp -m tcp --dport foo ; FAIL
-p tcp -m tcp --dport 80 --dport 81 ; FAIL
-p tcp -m tcp --destination-port 80 --source-port 3 ; -p tcp -m tcp --sport 3 --dport 80
-p tcp -m tcp --syn ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp -m tcp ! --syn ; -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp -m tcp --tcp-flags ALL NONE ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE
-p tcp -m tcp --tcp-flags SYN,ACK SYN ; =
-p tcp -m tcp --tcp-flags ACK,SYN SYN ; -p tcp -m tcp --tcp-flags SYN,ACK SYN
-p tcp -m tcp ! --tcp-flags ALL SYN,FIN ; -p tcp -m tcp ! --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,SYN
-p tcp -m tcp --tcp-flags NONE NONE ; -p tcp -m tcp
-p tcp -m tcp --tcp-flags SYN,RST,ACK,FIN SYN ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp -m tcp --tcp-flags syn,foo SYN ; FAIL
-p tcp -m tcp --tcp-flags SYN ; FAIL
-p tcp -m tcp --tcp-flags 0x3f 0x02 ; FAIL
-p tcp -m tcp --tcp-flags SYN, SYN ; -p tcp -m tcp --tcp-flags SYN SYN
-p tcp -m tcp --tcp-flags SYN ACK ; =
-p tcp -m tcp --tcp-flags ALL ALL ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG FIN,SYN,RST,PSH,ACK,URG
-p tcp -m tcp --tcp-flags syn,ack syn ; -p tcp -m tcp --tcp-flags SYN,ACK SYN
-p tcp -m tcp --tcp-option 2 ; =
-p tcp -m tcp ! --tcp-option 2 ; =
-p tcp -m tcp --tcp-option 0 ; FAIL
-p tcp -m tcp --tcp-option 256 ; FAIL
-p tcp -m tcp --tcp-option foo ; FAIL
-p tcp -m tcp --syn --tcp-flags ALL SYN ; FAIL
-p tcp -m tcp ; =
-m tcp --dport 80 ; FAIL
! -p tcp -m tcp --dport 80 ; FAIL
-p udp -m tcp --dport 80 ; FAIL
-p all -m tcp --dport 80 ; FAIL
-p tcp -m tcp --dport 80,81 ; FAIL
-p tcp -m tcp --dport "" ; FAIL
-p tcp -m tcp --dport : ; -p tcp -m tcp
-p tcp -m tcp --dport 1:2:3 ; FAIL
-p tcp -m tcp --dport 80 --sport 90 --syn --tcp-option 3 ; -p tcp -m tcp --sport 90 --dport 80 --tcp-option 3 --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp -m tcp --tcp-option 3 --syn --dport 80 --sport 90 ; -p tcp -m tcp --sport 90 --dport 80 --tcp-option 3 --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp ! --syn --dport 3 ; -p tcp -m tcp --dport 3 ! --tcp-flags FIN,SYN,RST,ACK SYN
-p tcp --tcp-flags ALL NONE ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG NONE
-p tcp ! --tcp-flags NONE NONE ; -p tcp -m tcp ! --tcp-flags NONE NONE
-p tcp --tcp-flags SYN NONE ; -p tcp -m tcp --tcp-flags SYN NONE
-p tcp --tcp-flags NONE SYN ; -p tcp -m tcp
-p tcp --tcp-flags "" SYN ; -p tcp -m tcp
-p tcp --tcp-flags NONE,SYN SYN ; -p tcp -m tcp --tcp-flags SYN SYN
-p tcp --tcp-flags ALL,SYN SYN ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,PSH,ACK,URG SYN
-p tcp --tcp-option 0x2 ; -p tcp -m tcp --tcp-option 2
-p tcp --tcp-option " 2" ; -p tcp -m tcp --tcp-option 2
-p tcp --tcp-option 02 ; -p tcp -m tcp --tcp-option 2
-p tcp --dport +80 ; -p tcp -m tcp --dport 80
-p tcp --dport " 80" ; -p tcp -m tcp --dport 80

# udp
-p udp -m udp --dport 53 ! --sport 1:2 ; -p udp -m udp ! --sport 1:2 --dport 53
-p udp --dport domain ; -p udp -m udp --dport 53
-p udp -m udp ; =
-p udp -m udp ! --dport 0:65535 ; -p udp -m udp
-p udp -m udp --dport 9:8 ; =
-p udp -m udp --dport 66666 ; -p udp -m udp --dport 1130
-m udp --dport 3 ; FAIL
-p 17 --dport 3 ; -p udp -m udp --dport 3
-p udp -m udp --dport 3 --dport 4 ; FAIL
-p udplite -m udp --dport 3 ; FAIL
-p udp --dport -1 ; FAIL
-p udp --dport 0x50:0x60 ; FAIL
-p udp --dport foo ; FAIL
-p udp --dport 1:2:3 ; FAIL
-p udp --dport : ; -p udp -m udp
-p udp --dport "" ; -p udp -m udp --dport 0
-p udp --dport 4294967296 ; -p udp -m udp --dport 0
-p tcp -m udp --dport 80 ; FAIL

# icmp
-p icmp --icmp-type any ; -p icmp -m icmp --icmp-type any
-p icmp -m icmp ; FAIL
-p icmp -m icmp ! --icmp-type any ; =
-p icmp --icmp-type 8 ; -p icmp -m icmp --icmp-type 8
-p icmp --icmp-type 8/0 ; -p icmp -m icmp --icmp-type 8/0
-p icmp --icmp-type ! 8 ; FAIL
-p icmp ! --icmp-type 8 ; -p icmp -m icmp ! --icmp-type 8
-p icmp --icmp-type echo-request ; -p icmp -m icmp --icmp-type 8
-p icmp --icmp-type ping ; -p icmp -m icmp --icmp-type 8
-p icmp --icmp-type pong ; -p icmp -m icmp --icmp-type 0
-p icmp --icmp-type 3 ; -p icmp -m icmp --icmp-type 3
-p icmp --icmp-type 3/1 ; -p icmp -m icmp --icmp-type 3/1
-p icmp --icmp-type host-unreachable ; -p icmp -m icmp --icmp-type 3/1
-p icmp --icmp-type destination-unreachable ; -p icmp -m icmp --icmp-type 3
-p icmp --icmp-type 255 ; -p icmp -m icmp --icmp-type any
-p icmp --icmp-type 256 ; FAIL
-p icmp --icmp-type 255/3 ; -p icmp -m icmp --icmp-type any
-p icmp --icmp-type 3/256 ; FAIL
-p icmp --icmp-type 3/0:5 ; -p icmp -m icmp --icmp-type 3/0
-p icmp --icmp-type foo ; FAIL
-p icmp --icmp-type host ; FAIL
-p icmp --icmp-type host- ; FAIL
-p icmp --icmp-type echo ; FAIL
-p icmp --icmp-type ECHO-REQUEST ; -p icmp -m icmp --icmp-type 8
-p icmp --icmp-type ttl-exceeded ; -p icmp -m icmp --icmp-type 11
-p icmp --icmp-type ttl-zero-during-transit ; -p icmp -m icmp --icmp-type 11/0
-p icmp --icmp-type time-exceeded ; -p icmp -m icmp --icmp-type 11
-p icmp --icmp-type redirect ; -p icmp -m icmp --icmp-type 5
-p icmp --icmp-type 40 ; -p icmp -m icmp --icmp-type 40
-p icmp --icmp-type 0x8 ; -p icmp -m icmp --icmp-type 8
-p icmp --icmp-type 8/ ; FAIL
-p icmp --icmp-type "" ; FAIL
-p icmp -m icmp --icmp-type 8 --icmp-type 0 ; FAIL
-m icmp --icmp-type 8 ; FAIL
-p tcp -m icmp --icmp-type 8 ; FAIL
! -p icmp -m icmp --icmp-type 8 ; FAIL
-p icmp --icmp-type 3/foo ; FAIL
-p icmp --icmp-type TOS-network-unreachable ; -p icmp -m icmp --icmp-type 3/11
-p icmp --icmp-type tos-network-unreachable ; -p icmp -m icmp --icmp-type 3/11
-p icmp --icmp-type network-redirect ; -p icmp -m icmp --icmp-type 5/0
-p icmp --icmp-type 3 /1 ; FAIL
-p icmp --icmp-type -1 ; FAIL
-p icmp --icmp-type 0 ; -p icmp -m icmp --icmp-type 0
-p icmp --icmp-type 0/0 ; -p icmp -m icmp --icmp-type 0/0
-p icmp --icmp-type 3/4 ; -p icmp -m icmp --icmp-type 3/4
-p icmp --icmp-type any/3 ; FAIL
-p icmp --icmp-type 017 ; -p icmp -m icmp --icmp-type 15
-p icmp --icmp-type +8 ; -p icmp -m icmp --icmp-type 8

# multiport
-p tcp -m multiport --dports 80,443 ; =
-p tcp -m multiport --dports 80,8000:8100,443 ; =
-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15 ; =
-p tcp -m multiport --dports 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16 ; FAIL
-p tcp -m multiport --dports 1:2,3,4,5,6,7,8,9,10,11,12,13,14,15 ; =
-p tcp -m multiport --dports 1:2,3,4,5,6,7,8,9,10,11,12,13,14,15,16 ; FAIL
-p tcp -m multiport ! --dports 80 ; =
-p tcp -m multiport --sports 80 ; =
-p tcp -m multiport --ports 80,http ; -p tcp -m multiport --ports 80,80
-p tcp -m multiport --destination-ports 80  ; -p tcp -m multiport --dports 80
-p tcp -m multiport --dports 90:80 ; FAIL
-p tcp -m multiport --dports 80:80 ; FAIL
-p tcp -m multiport --dports 80: ; FAIL
-p tcp -m multiport --dports :80 ; FAIL
-p tcp -m multiport --dports 0:65535 ; =
-p tcp -m multiport --dports 65536 ; FAIL
-p tcp -m multiport --dports 80 --sports 81 ; FAIL
-p tcp -m multiport --dports 80, ; FAIL
-p tcp -m multiport --dports ,80 ; FAIL
-p tcp -m multiport --dports 1024:65536 ; FAIL
-p tcp -m multiport --dports foo ; FAIL
-p tcp -m multiport ; FAIL
-m multiport --dports 80 ; FAIL
! -p tcp -m multiport --dports 80 ; FAIL
-p icmp -m multiport --dports 80 ; FAIL
-p udplite -m multiport --dports 80 ; =
-p sctp -m multiport --dports 80 ; =
-p dccp -m multiport --dports 80 ; =
-p tcp -m multiport --dports 22 -m multiport --sports 33 ; =
-p tcp -m multiport --dports 0x50,010 ; -p tcp -m multiport --dports 80,8
-p tcp -m multiport --dports HTTP ; FAIL
-p tcp -m multiport --dports 80:http ; FAIL
-p tcp -m multiport --dports http:443 ; -p tcp -m multiport --dports 80:443
-p tcp -m multiport --dports 1:2:3 ; FAIL
-p tcp -m multiport --dports "80, 81" ; -p tcp -m multiport --dports 80,81

# mark
-m mark --mark 1 ; -m mark --mark 0x1
-m mark ! --mark 1 ; -m mark ! --mark 0x1
-m mark --mark 0x1/0xff ; =
-m mark --mark 0x1ff/0xff ; =
-m mark --mark 0x4000/0x4000 ; =
-m mark --mark 010 ; -m mark --mark 0x8
-m mark --mark 0/0 ; -m mark --mark 0x0/0x0
-m mark --mark 0xffffffff/0xffffffff ; -m mark --mark 0xffffffff
-m mark --mark 0x100000000 ; FAIL
-m mark --mark 4294967296 ; FAIL
-m mark --mark -1 ; FAIL
-m mark --mark 1/ ; FAIL
-m mark --mark foo ; FAIL
-m mark --mark 1/foo ; FAIL
-m mark ; FAIL
-m mark --mark 1 --mark 2 ; FAIL
-m mark --mark 0x004000/0x00004000 ; -m mark --mark 0x4000/0x4000
-m mark --mark "" ; FAIL
-m mark --mark 0x1/0x ; FAIL
-m mark --mark " 1" ; -m mark --mark 0x1
-m mark --mark 1/0xffffffff ; -m mark --mark 0x1
-m mark --mark 1/2/3 ; FAIL
-m mark --mark "1 " ; FAIL
-m mark --mark +1 ; -m mark --mark 0x1

# connmark
-m connmark --mark 1 ; -m connmark --mark 0x1
-m connmark ! --mark 0x10/0xf0 ; =
-m connmark --mark 0x123456789 ; FAIL
-m connmark ; FAIL

# comment
-m comment --comment hello ; =
-m comment --comment "hello world" ; =
-m comment --comment "a\"b'c\\d" ; -m comment --comment "a\"b\'c\\d"
-m comment --comment "" ; =
-m comment --comment "ns/svc" ; =
-m comment --comment "-x" ; -m comment --comment -x
-m comment --comment "a_b-c" ; -m comment --comment a_b-c
-m comment --comment "a.b" ; =
-m comment --comment "a,b:c" ; =
-m comment --comment "tab	x" ; =
-m comment --comment "ü" ; =
-m comment --comment "a!b" ; =
-m comment --comment ! ; -m comment --comment "!"
-m comment --comment 'single' ; -m comment --comment "\'single\'"
-m comment --comment "$x \n `y`" ; -m comment --comment "$x n `y`"
-m comment ! --comment foo ; FAIL
-m comment ; FAIL
-m comment --comment a --comment b ; FAIL
-m comment --comment "a\nb" ; -m comment --comment anb

# conntrack
-m conntrack --ctstate NEW ; =
-m conntrack --ctstate ESTABLISHED,RELATED ; -m conntrack --ctstate RELATED,ESTABLISHED
-m conntrack --ctstate RELATED,ESTABLISHED,DNAT ; =
-m conntrack ! --ctstate NEW ; =
-m conntrack --ctstate INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED,SNAT,DNAT ; =
-m conntrack --ctstate DNAT,SNAT,UNTRACKED,INVALID ; -m conntrack --ctstate INVALID,UNTRACKED,SNAT,DNAT
-m conntrack --ctstate new ; -m conntrack --ctstate NEW
-m conntrack --ctstate FOO ; FAIL
-m conntrack --ctstate NEW, ; FAIL
-m conntrack --ctstate "" ; FAIL
-m conntrack --ctstate NEW,NEW ; -m conntrack --ctstate NEW
-m conntrack --ctstate N ; -m conntrack --ctstate NEW
-m conntrack --ctstate NEW --ctstate ESTABLISHED ; FAIL
-m conntrack --ctproto tcp ; -m conntrack --ctproto 6
-m conntrack --ctproto 6 ; =
-m conntrack ! --ctproto 17 ; =
-m conntrack --ctproto all ; -m conntrack --ctproto 0
-m conntrack ! --ctproto all ; -m conntrack ! --ctproto 0
-m conntrack --ctproto 300 ; FAIL
-m conntrack --ctproto foo ; FAIL
-m conntrack --ctproto 47 ; =
-m conntrack --ctproto 200 ; =
-m conntrack --ctorigsrc 10.0.0.1 ; =
-m conntrack --ctorigsrc 10.0.0.1/32 ; -m conntrack --ctorigsrc 10.0.0.1
-m conntrack --ctorigsrc 10.0.0.7/24 ; =
-m conntrack --ctorigsrc 10.0.0.0/255.255.255.0 ; -m conntrack --ctorigsrc 10.0.0.0/24
-m conntrack --ctorigsrc 10.0.0.0/255.0.255.0 ; -m conntrack --ctorigsrc 10.0.0.0
-m conntrack ! --ctorigdst 10.0.0.0/8 ; =
-m conntrack --ctorigdst 0.0.0.0/0 ; =
-m conntrack ! --ctorigdst 0.0.0.0/0 ; =
-m conntrack --ctreplsrc 10.0.0.1 ; =
-m conntrack ! --ctrepldst 10.0.0.1 ; =
-m conntrack --ctreplsrc 10.0.0.1,10.0.0.2 ; FAIL
-m conntrack --ctreplsrc foo ; FAIL
-m conntrack --ctreplsrc 10.0 ; -m conntrack --ctreplsrc 10.0.0.0
-m conntrack --ctreplsrc 10.0.0.0/33 ; -m conntrack --ctreplsrc 10.0.0.0
-m conntrack --ctorigsrcport 80 ; =
-m conntrack ! --ctorigsrcport 80:90 ; =
-m conntrack --ctorigdstport 80:80 ; -m conntrack --ctorigdstport 80
-m conntrack --ctreplsrcport 90:80 ; =
-m conntrack --ctrepldstport http ; -m conntrack --ctrepldstport 80
-m conntrack --ctrepldstport :80 ; -m conntrack --ctrepldstport 0:80
-m conntrack --ctrepldstport 80: ; -m conntrack --ctrepldstport 80:65535
-m conntrack --ctrepldstport 70000 ; -m conntrack --ctrepldstport 4464
-p tcp -m conntrack --ctproto tcp --ctorigdstport 80 ; -p tcp -m conntrack --ctproto 6 --ctorigdstport 80
-p tcp -m conntrack ! --ctproto tcp --ctorigdstport 80  ; -p tcp -m conntrack ! --ctproto 6 --ctorigdstport 80
-m conntrack --ctproto tcp --ctorigdstport 80 ; -m conntrack --ctproto 6 --ctorigdstport 80
-m conntrack --ctproto udp --ctorigdstport 80 --ctreplsrcport 8080 --ctorigsrcport 1 --ctrepldstport 2 --ctreplsrc 1.1.1.1 --ctrepldst 2.2.2.2 --ctorigsrc 3.3.3.3 --ctorigdst 4.4.4.4 --ctstatus ASSURED --ctexpire 10 --ctdir ORIGINAL --ctstate NEW ; -m conntrack --ctstate NEW --ctproto 17 --ctorigsrc 3.3.3.3 --ctorigdst 4.4.4.4 --ctreplsrc 1.1.1.1 --ctrepldst 2.2.2.2 --ctorigsrcport 1 --ctorigdstport 80 --ctreplsrcport 8080 --ctrepldstport 2 --ctstatus ASSURED --ctexpire 10 --ctdir ORIGINAL
-m conntrack --ctstatus NONE ; =
-m conntrack --ctstatus EXPECTED,SEEN_REPLY,ASSURED,CONFIRMED ; =
-m conntrack --ctstatus CONFIRMED,ASSURED ; -m conntrack --ctstatus ASSURED,CONFIRMED
-m conntrack --ctstatus NONE,ASSURED ; -m conntrack --ctstatus ASSURED
-m conntrack ! --ctstatus ASSURED ; =
-m conntrack ! --ctstatus NONE ; =
-m conntrack --ctstatus SNAT ; FAIL
-m conntrack --ctstatus assured ; -m conntrack --ctstatus ASSURED
-m conntrack --ctexpire 10 ; =
-m conntrack --ctexpire 10:20 ; =
-m conntrack --ctexpire 20:10 ; =
-m conntrack --ctexpire :20 ; -m conntrack --ctexpire 0:20
-m conntrack --ctexpire 20: ; -m conntrack --ctexpire 20:4294967295
-m conntrack ! --ctexpire 20:30 ; =
-m conntrack --ctexpire 4294967295 ; =
-m conntrack --ctexpire 4294967296 ; FAIL
-m conntrack --ctdir ORIGINAL ; =
-m conntrack --ctdir REPLY ; =
-m conntrack --ctdir original ; -m conntrack --ctdir ORIGINAL
-m conntrack ! --ctdir REPLY ; FAIL
-m conntrack --ctdir FOO ; FAIL
-m conntrack --ctdir REPLY --ctdir ORIGINAL ; FAIL
-m conntrack ; FAIL
-p tcp --dport 80 -m conntrack --ctstate NEW --ctdir ORIGINAL --ctproto tcp --ctorigdstport 80 ; -p tcp -m tcp --dport 80 -m conntrack --ctstate NEW --ctproto 6 --ctorigdstport 80 --ctdir ORIGINAL
-m conntrack --ctstate NEW,ESTAB ; -m conntrack --ctstate NEW,ESTABLISHED
-m conntrack --ctstate INV ; -m conntrack --ctstate INVALID
-m conntrack --ctstate S ; -m conntrack --ctstate SNAT
-m conntrack --ctstatus N ; -m conntrack --ctstatus NONE
-m conntrack --ctdir O ; FAIL
-m conntrack --ctorigsrcport foo ; FAIL
-m conntrack --ctorigsrcport -1 ; FAIL
-m conntrack --ctorigsrcport 1:2:3 ; FAIL
-m conntrack --ctproto TCP ; -m conntrack --ctproto 6
-m conntrack --ctproto 0 ; =
-m conntrack --ctorigsrc 10.0.0.0/0 ; =
-m conntrack --ctorigsrc "" ; FAIL
-m conntrack --ctorigsrc 10.0.0.1/ ; FAIL
-m conntrack --ctexpire foo ; FAIL
-m conntrack --ctexpire 5:5 ; -m conntrack --ctexpire 5
-m conntrack --ctexpire : ; -m conntrack --ctexpire 0:4294967295
-m conntrack --ctstate NEW ! --ctproto 6 ! --ctorigsrc 1.1.1.1 ! --ctorigdst 1.1.1.1 ! --ctreplsrc 1.1.1.1 ! --ctrepldst 1.1.1.1 ! --ctorigsrcport 1 ! --ctorigdstport 1 ! --ctreplsrcport 1 ! --ctrepldstport 2 ! --ctstatus ASSURED ! --ctexpire 3 --ctdir REPLY ; =
-p 17 -m conntrack --ctproto 6 ; -p udp -m conntrack --ctproto 6
-m conntrack --ctorigsrc 10.1 ; -m conntrack --ctorigsrc 10.0.0.1
-m conntrack --ctorigsrc 10.1/16 ; -m conntrack --ctorigsrc 10.0.0.1/16
-m conntrack --ctorigsrc 010.1.1.1 ; -m conntrack --ctorigsrc 8.1.1.1
-m conntrack --ctorigsrc 0xa.1.1.1 ; -m conntrack --ctorigsrc 10.1.1.1
-m conntrack --ctorigsrc 10.0.0.1/255.255.255 ; -m conntrack --ctorigsrc 10.0.0.1
-m conntrack --ctstate NEW -m conntrack --ctstate ESTABLISHED ; =
[raw PREROUTING] -m conntrack --ctstate NEW ; =

# state
-m state --state NEW ; =
-m state --state RELATED,ESTABLISHED ; =
-m state --state NEW,INVALID,ESTABLISHED,RELATED,UNTRACKED ; -m state --state INVALID,NEW,RELATED,ESTABLISHED,UNTRACKED
-m state ! --state INVALID ; =
-m state --state SNAT ; FAIL
-m state --state new ; -m state --state NEW
-m state --state FOO ; FAIL
-m state ; FAIL
-m state --state NEW --state ESTABLISHED ; FAIL
-m state --ctstate NEW ; FAIL
[raw PREROUTING] -m state --state NEW ; =

# set
-m set --match-set s1 src ; =
-m set ! --match-set s1 dst ; =
-m set --match-set s2 dst,dst ; =
-m set --match-set s1 src,dst,src ; =
-m set --match-set s1 src,dst,src,dst,src,dst ; =
-m set --match-set s1 src,dst,src,dst,src,dst,src ; FAIL
-m set --match-set s1 foo ; FAIL
-m set --match-set nope src ; FAIL
-m set --match-set s1 ; FAIL
-m set --set s1 src ; -m set --match-set s1 src
-m set --match-set s1 src --return-nomatch ; =
-m set --match-set s1 src ! --return-nomatch ; FAIL
-m set --match-set s1 src ! --update-counters ; =
-m set --match-set s1 src --update-counters ; -m set --match-set s1 src
-m set --match-set s1 src ! --update-subcounters ; =
-m set --match-set s1 src --packets-eq 3 ; =
-m set --match-set s1 src ! --packets-eq 3 ; =
-m set --match-set s1 src --packets-lt 3 --bytes-gt 5 ; =
-m set --match-set s1 src --packets-gt 3 --bytes-eq 5 ; =
-m set --match-set s1 src ! --bytes-eq 5 --return-nomatch ! --update-counters ! --update-subcounters --packets-lt 9 ; -m set --match-set s1 src --return-nomatch ! --update-counters ! --update-subcounters --packets-lt 9 ! --bytes-eq 5
-m set --match-set s1 src ! --bytes-lt 5 ; FAIL
-m set --match-set s1 src --bytes-lt 5 --bytes-gt 3 ; FAIL
-m set --match-set s1 src --packets-eq 0 ; =
-m set --match-set s1 src --packets-eq 18446744073709551615 ; =
-m set --match-set s1 src --packets-eq foo ; FAIL
-m set --return-nomatch ; FAIL
-m set --match-set s1 src --match-set s2 dst ; FAIL
-m set ; FAIL
-m set --match-set s1 SRC ; FAIL
-m set --match-set s1 src, ; FAIL
-m set --match-set aaaaaaaaaabbbbbbbbbbccccccccccdddd src ; FAIL
-m set --match-set s1 dst --packets-lt 0x10 ; -m set --match-set s1 dst --packets-lt 16
-m set --match-set s1 dst --packets-lt 3 --packets-eq 4 ; FAIL
-m set ! --match-set s1 dst ! --update-counters --update-counters ; -m set ! --match-set s1 dst ! --update-counters
-m set ! --set s1 dst ; -m set ! --match-set s1 dst
-m set --match-set s1 "src, dst" ; FAIL
-m set --match-set s1 src --return-nomatch --return-nomatch ; -m set --match-set s1 src --return-nomatch
-m set --match-set s1 src,src,src,src,src,src ; =

# addrtype
-m addrtype --dst-type LOCAL ; =
-m addrtype ! --dst-type LOCAL ; =
-m addrtype --src-type LOCAL --dst-type UNICAST ; =
-m addrtype --dst-type UNICAST --src-type LOCAL ; -m addrtype --src-type LOCAL --dst-type UNICAST
-m addrtype --dst-type LOCAL,BROADCAST,MULTICAST ; =
-m addrtype --dst-type MULTICAST,LOCAL ; -m addrtype --dst-type LOCAL,MULTICAST
-m addrtype --dst-type local ; -m addrtype --dst-type LOCAL
-m addrtype --dst-type FOO ; FAIL
-m addrtype --dst-type UNSPEC,ANYCAST,BLACKHOLE,UNREACHABLE,PROHIBIT,THROW,NAT,XRESOLVE ; =
-m addrtype --dst-type THROW ; =
-m addrtype --dst-type LOC ; -m addrtype --dst-type LOCAL
-m addrtype --dst-type LOCAL --limit-iface-in ; =
-m addrtype --dst-type LOCAL --limit-iface-out ; FAIL
-m addrtype --dst-type LOCAL ! --limit-iface-in ; FAIL
-m addrtype --limit-iface-in ; FAIL
-m addrtype --dst-type LOCAL --limit-iface-in --limit-iface-out ; FAIL
-m addrtype ; FAIL
[filter OUTPUT] -m addrtype --dst-type LOCAL --limit-iface-in ; FAIL
[filter OUTPUT] -m addrtype --dst-type LOCAL --limit-iface-out ; =
[filter FORWARD] -m addrtype --dst-type LOCAL --limit-iface-out ; =
[mangle PREROUTING] -m addrtype --dst-type LOCAL --limit-iface-out ; FAIL
[mangle PREROUTING] -m addrtype --dst-type LOCAL --limit-iface-in ; =
[mangle POSTROUTING] -m addrtype --dst-type LOCAL --limit-iface-in ; FAIL
-m addrtype --dst-type PROHIBIT ; =
-m addrtype --dst-type BLACKHOLE ; =
-m addrtype --dst-type LOCAL --dst-type UNICAST ; FAIL
-m addrtype --dst-type LOCAL, ; FAIL
-m addrtype ! --src-type BROADCAST ! --dst-type LOCAL --limit-iface-in ; =
-m addrtype --src-type UNSPEC ; =
-m addrtype --src-type "" ; FAIL
-m addrtype --src-type U ; -m addrtype --src-type UNSPEC
-m addrtype --dst-type "LOCAL,,UNICAST" ; FAIL
[mangle PREROUTING] -m addrtype --dst-type BLACKHOLE --limit-iface-in ; =

# physdev
-m physdev --physdev-in eth0 ; =
-m physdev ! --physdev-in eth+ ; =
-m physdev --physdev-out eth0 ; =
-m physdev --physdev-is-in ; =
-m physdev ! --physdev-is-in ; =
-m physdev --physdev-is-out ; =
-m physdev --physdev-is-bridged ; =
-m physdev --physdev-is-bridged ! --physdev-in e --physdev-out f ; -m physdev ! --physdev-in e --physdev-out f --physdev-is-bridged
-m physdev ! --physdev-is-bridged --physdev-is-in ! --physdev-in e ; -m physdev --physdev-is-in ! --physdev-in e ! --physdev-is-bridged
-m physdev ; FAIL
[filter OUTPUT] -m physdev --physdev-out eth0 ; FAIL
[filter FORWARD] -m physdev --physdev-out eth0 ; =
[filter FORWARD] -m physdev --physdev-is-out ; =
[filter OUTPUT] -m physdev --physdev-is-out ; FAIL
[filter OUTPUT] -m physdev --physdev-is-in ; =
[filter FORWARD] -m physdev --physdev-is-bridged ! --physdev-in e --physdev-out f --physdev-is-in ; -m physdev --physdev-is-in ! --physdev-in e --physdev-out f --physdev-is-bridged
[filter FORWARD] -m physdev --physdev-out f ! --physdev-is-out --physdev-in z ! --physdev-is-in --physdev-is-bridged ; -m physdev ! --physdev-is-in --physdev-in z ! --physdev-is-out --physdev-out f --physdev-is-bridged
[filter FORWARD] -m physdev --physdev-in aaaaaaaaaaaaaaaaaaaaaaa ; FAIL
[filter FORWARD] -m physdev --physdev-in "" ; -m physdev --physdev-in 
[mangle PREROUTING] -m physdev --physdev-out eth0 ; =
[mangle POSTROUTING] -m physdev --physdev-out eth0 ; =
[filter OUTPUT] -m physdev --physdev-is-bridged --physdev-out eth0 ; -m physdev --physdev-out eth0 --physdev-is-bridged
[filter OUTPUT] -m physdev ! --physdev-is-bridged --physdev-out eth0 ; FAIL
[filter OUTPUT] -m physdev ! --physdev-is-in ; =
[filter OUTPUT] -m physdev ! --physdev-is-out ; FAIL

# iprange
-m iprange --src-range 10.0.0.1-10.0.0.9 ; =
-m iprange ! --src-range 10.0.0.1-10.0.0.9 --dst-range 1.1.1.1-2.2.2.2 ; =
-m iprange --dst-range 1.1.1.1-2.2.2.2 --src-range 10.0.0.1-10.0.0.9 ; -m iprange --src-range 10.0.0.1-10.0.0.9 --dst-range 1.1.1.1-2.2.2.2
-m iprange --src-range 10.0.0.1 ; -m iprange --src-range 10.0.0.1-10.0.0.1
-m iprange --src-range 10.0.0.1-10.0.0.1 ; =
-m iprange --src-range 10.0.0.9-10.0.0.1 ; =
-m iprange --src-range 10.0.0.9- ; FAIL
-m iprange --src-range foo-bar ; FAIL
-m iprange --src-range 10.0.0.1 - 10.0.0.9 ; FAIL
-m iprange --src-range 10.0.1-10.0.2 ; -m iprange --src-range 10.0.1.0-10.0.2.0
-m iprange ; FAIL
-m iprange --src-range 10.0.0.1-10.0.0.9-10.0.0.10 ; FAIL
-m iprange --src-range 10.0.0.300-10.0.0.301 ; FAIL
-m iprange --src-range "" ; FAIL
-m iprange --src-range - ; FAIL
-m iprange --src-range 10-11 ; -m iprange --src-range 10.0.0.0-11.0.0.0
-m iprange --src-range 10.1 ; -m iprange --src-range 10.1.0.0-10.1.0.0
-m iprange --src-range 010.1.1.1 ; -m iprange --src-range 8.1.1.1-8.1.1.1

# owner
[filter OUTPUT] -m owner --uid-owner 0 ; =
[filter OUTPUT] -m owner --uid-owner root ; -m owner --uid-owner 0
[filter OUTPUT] -m owner ! --uid-owner 1000-2000 ; =
[filter OUTPUT] -m owner --uid-owner 1000:2000 ; -m owner --uid-owner 1000-2000
[filter OUTPUT] -m owner --uid-owner 0x10 ; -m owner --uid-owner 16
[filter OUTPUT] -m owner --uid-owner 5-5 ; -m owner --uid-owner 5
[filter OUTPUT] -m owner --uid-owner 5-3 ; FAIL
[filter OUTPUT] -m owner --uid-owner 4294967294 ; =
[filter OUTPUT] -m owner --uid-owner 4294967295 ; FAIL
[filter OUTPUT] -m owner --uid-owner -5 ; FAIL
[filter OUTPUT] -m owner --uid-owner nobody-such ; FAIL
[filter OUTPUT] -m owner --uid-owner 5- ; FAIL
[filter OUTPUT] -m owner --uid-owner 5-x ; FAIL
[filter OUTPUT] -m owner --gid-owner 0 ; =
[filter OUTPUT] -m owner ! --gid-owner 7-9 --suppl-groups ; =
[filter OUTPUT] -m owner --suppl-groups --gid-owner 7 ; FAIL
[filter OUTPUT] -m owner --gid-owner 7 ! --suppl-groups ; FAIL
[filter OUTPUT] -m owner --gid-owner 7 --uid-owner 3 --socket-exists ; -m owner --socket-exists --uid-owner 3 --gid-owner 7
[filter OUTPUT] -m owner ! --gid-owner 7 ! --uid-owner 3 ! --socket-exists ; -m owner ! --socket-exists ! --uid-owner 3 ! --gid-owner 7
[filter OUTPUT] -m owner --uid-owner 3 --uid-owner 4 ; FAIL
[mangle POSTROUTING] -m owner --uid-owner 3 ; =
-m owner --uid-owner 3 ; FAIL
[filter OUTPUT] -m owner ! --socket-exists ; =
[filter OUTPUT] -m owner --suppl-groups ; FAIL
[filter OUTPUT] -m owner ; FAIL
[filter OUTPUT] -m owner --pid-owner 4 ; FAIL
[mangle POSTROUTING] -m owner --socket-exists ; =
-m owner --socket-exists ; FAIL
[nat OUTPUT] -m owner --socket-exists ; =

# length
-m length --length 40 ; =
-m length --length 40:100 ; =
-m length ! --length 40: ; -m length ! --length 40:65535
-m length --length :100 ; -m length --length 0:100
-m length --length 100:40 ; =
-m length --length 0:65535 ; =
-m length --length 65536 ; FAIL
-m length --length foo ; FAIL
-m length --length 0x28 ; -m length --length 40
-m length --length : ; -m length --length 0:65535
-m length --length 40:40 ; -m length --length 40
-m length --length 40:50:60 ; FAIL
-m length ; FAIL
-m length --length -1 ; FAIL
-m length --length "" ; -m length --length 0
-m length --length 1:x ; FAIL
-m length --length +5 ; -m length --length 5

# ttl
-m ttl --ttl-eq 64 ; =
-m ttl ! --ttl-eq 64 ; =
-m ttl --ttl 64 ; -m ttl --ttl-eq 64
-m ttl --ttl-lt 5 ; =
-m ttl --ttl-gt 5 ; =
-m ttl ! --ttl-gt 5 ; FAIL
-m ttl --ttl-eq 256 ; FAIL
-m ttl --ttl-eq foo ; FAIL
-m ttl --ttl-eq 3 --ttl-gt 4 ; FAIL
-m ttl ; FAIL
-m ttl --ttl-lt 0x10 ; -m ttl --ttl-lt 16
-m ttl --foo ; FAIL
-m ttl --ttl-eq 010 ; -m ttl --ttl-eq 8
-m ttl --ttl-eq "" ; FAIL

# tos
-m tos --tos 0x10 ; -m tos --tos 0x10/0xff
-m tos ! --tos 0x10/0x3f ; =
-m tos --tos Minimize-Delay ; -m tos --tos 0x10/0x3f
-m tos --tos Maximize-Throughput ; -m tos --tos 0x08/0x3f
-m tos --tos Maximize-Reliability ; -m tos --tos 0x04/0x3f
-m tos --tos Minimize-Cost ; -m tos --tos 0x02/0x3f
-m tos --tos Normal-Service ; -m tos --tos 0x00/0x3f
-m tos --tos normal-service ; -m tos --tos 0x00/0x3f
-m tos --tos 256 ; FAIL
-m tos --tos 0/0 ; -m tos --tos 0x00/0x00
-m tos --tos 0x1f/0x3 ; -m tos --tos 0x1f/0x03
-m tos --tos Mini ; FAIL
-m tos --tos 8 ; -m tos --tos 0x08/0xff
-m tos ; FAIL
-m tos --tos 0x100 ; FAIL
-m tos --tos 0x10/0x100 ; FAIL
-m tos --tos 0x10/ ; FAIL
-m tos --tos -1 ; FAIL

# dscp
-m dscp --dscp 10 ; -m dscp --dscp 0x0a
-m dscp --dscp 0x0a ; =
-m dscp ! --dscp 0x3f ; =
-m dscp --dscp 64 ; FAIL
-m dscp --dscp-class EF ; -m dscp --dscp 0x2e
-m dscp --dscp-class ef ; -m dscp --dscp 0x2e
-m dscp --dscp-class AF11 ; -m dscp --dscp 0x0a
-m dscp --dscp-class CS0 ; -m dscp --dscp 0x00
-m dscp --dscp-class BE ; -m dscp --dscp 0x00
-m dscp --dscp-class FOO ; FAIL
-m dscp ! --dscp-class CS7 ; -m dscp ! --dscp 0x38
-m dscp --dscp-class VA ; FAIL
-m dscp --dscp-class LE ; FAIL
-m dscp ; FAIL
-m dscp --dscp 1 --dscp-class EF ; FAIL
-m dscp --dscp foo ; FAIL
-m dscp --dscp 012 ; -m dscp --dscp 0x0a
-m dscp --dscp-class cs1 ; -m dscp --dscp 0x08
-m dscp --dscp-class af43 ; -m dscp --dscp 0x26

# statistic
-m statistic --mode random --probability 0.5 ; -m statistic --mode random --probability 0.50000000000
-m statistic --mode random --probability 0.3333333333 ; -m statistic --mode random --probability 0.33333333349
-m statistic ! --mode random --probability 0.3333333333 ; FAIL
-m statistic --mode random ! --probability 0.1 ; -m statistic --mode random ! --probability 0.10000000009
-m statistic --mode random --probability 1 ; -m statistic --mode random --probability 1.00000000000
-m statistic --mode random --probability 0 ; -m statistic --mode random --probability 0.00000000000
-m statistic --mode random --probability 1.5 ; FAIL
-m statistic --mode random --probability -1 ; FAIL
-m statistic --mode random --probability foo ; FAIL
-m statistic --mode random --probability 1e-3 ; -m statistic --mode random --probability 0.00100000016
-m statistic --mode random --probability .5 ; -m statistic --mode random --probability 0.50000000000
-m statistic --mode random ; FAIL
-m statistic --probability 0.5 ; FAIL
-m statistic --mode rand --probability 0.5 ; FAIL
-m statistic --mode foo ; FAIL
-m statistic --mode nth --every 3 ; FAIL
-m statistic --mode nth --every 3 --packet 2 ; =
-m statistic --mode nth ! --every 3 ; FAIL
-m statistic ! --mode nth --every 3 ; FAIL
-m statistic --mode nth --every 3 --packet 3 ; FAIL
-m statistic --mode nth --every 0 ; FAIL
-m statistic --mode nth --every 1 ; FAIL
-m statistic --mode nth --packet 1 ; FAIL
-m statistic --mode nth --every 3 --packet 0 ; =
-m statistic --mode nth --every 65536 --packet 65535 ; =
-m statistic --mode nth --every 65537 ; FAIL
-m statistic --mode nth --every 3 --probability 0.5 ; FAIL
-m statistic --mode nth --every foo ; FAIL
-m statistic ; FAIL
-m statistic --mode random --probability 0.0000099999 ; -m statistic --mode random --probability 0.00001000008
-m statistic --mode random --probability 0.25x ; FAIL
-m statistic --mode random --probability "" ; FAIL
-m statistic --mode nth --every 4294967295 --packet 4294967294 ; =
-m statistic --mode nth ! --every 3 --packet 1 ; =
-m statistic --mode nth --every 3 ! --packet 1 ; FAIL
-m statistic --mode RANDOM --probability 0.5 ; FAIL
-m statistic --mode nth --mode random --every 3 --packet 1 ; FAIL
-m statistic --mode random --every 3 --packet 1 ; FAIL
-m statistic --mode nth --probability 0.5 ; FAIL
-m statistic --mode random --probability 1e-12 ; -m statistic --mode random --probability 0.00000000000
-m statistic --mode nth --every 3 --packet 1 --every 2 ; FAIL

# recent
-m recent --set ; -m recent --set --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --rcheck ; -m recent --rcheck --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --update --seconds 60 --hitcount 3 ; -m recent --update --seconds 60 --hitcount 3 --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --update --seconds 60 --hitcount 3 --name foo --rsource ; -m recent --update --seconds 60 --hitcount 3 --name foo --mask 255.255.255.255 --rsource
-m recent --update --seconds 60 --name foo --rdest ; -m recent --update --seconds 60 --name foo --mask 255.255.255.255 --rdest
-m recent --remove --name foo ; -m recent --remove --name foo --mask 255.255.255.255 --rsource
-m recent ! --rcheck ; -m recent ! --rcheck --name DEFAULT --mask 255.255.255.255 --rsource
-m recent ! --set --name foo ; -m recent ! --set --name foo --mask 255.255.255.255 --rsource
-m recent ! --update --seconds 3 --rttl --name foo ; -m recent ! --update --seconds 3 --rttl --name foo --mask 255.255.255.255 --rsource
-m recent --rcheck --seconds 3 --reap --rttl --name foo ; -m recent --rcheck --seconds 3 --reap --rttl --name foo --mask 255.255.255.255 --rsource
-m recent --rcheck --reap ; FAIL
-m recent --rcheck --rttl --name bar --mask 255.255.255.0 ; -m recent --rcheck --rttl --name bar --mask 255.255.255.0 --rsource
-m recent --set --mask 24 ; -m recent --set --name DEFAULT --mask 0.0.0.24 --rsource
-m recent --set --mask 255.255.0.255 ; -m recent --set --name DEFAULT --mask 255.255.0.255 --rsource
-m recent --set --seconds 5 ; FAIL
-m recent --set --hitcount 5 ; FAIL
-m recent --set --rttl ; FAIL
-m recent --rcheck --hitcount 20 ; -m recent --rcheck --hitcount 20 --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --rcheck --hitcount 0 ; -m recent --rcheck --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --rcheck --hitcount 65535 ; -m recent --rcheck --hitcount 65535 --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --rcheck --hitcount 65536 ; FAIL
-m recent --rcheck --seconds 0 ; FAIL
-m recent --rcheck --seconds 4294967295 ; -m recent --rcheck --seconds -1 --name DEFAULT --mask 255.255.255.255 --rsource
-m recent --rcheck --seconds 4294967296 ; FAIL
-m recent --set --rcheck ; FAIL
-m recent --set --update ; FAIL
-m recent ; FAIL
-m recent --name foo ; FAIL
-m recent --set --name "a b" ; -m recent --set --name a b --mask 255.255.255.255 --rsource
-m recent --set --name a/b ; FAIL
-m recent --set --name "" ; FAIL
-m recent --set --name "a.b" ; -m recent --set --name a.b --mask 255.255.255.255 --rsource
-m recent --set --name "it's" ; -m recent --set --name it's --mask 255.255.255.255 --rsource
-m recent --set --name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd ; -m recent --set --name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddd --mask 255.255.255.255 --rsource
-m recent --set --name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccddddddddddd ; -m recent --set --name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccddddd --mask 255.255.255.255 --rsource
-m recent --remove --seconds 4 ; FAIL
-m recent --remove --hitcount 4 ; FAIL
-m recent --remove --rttl ; FAIL
-m recent --rcheck --seconds 10 --reap ! --name x ; FAIL
-m recent --set --rsource --rdest ; -m recent --set --name DEFAULT --mask 255.255.255.255 --rdest
-m recent --rcheck --seconds 3 --seconds 4 ; FAIL
-m recent --set --mask 10.1 ; -m recent --set --name DEFAULT --mask 10.0.0.1 --rsource
-m recent --set --mask foo ; FAIL

# limit
-m limit ; -m limit --limit 3/hour
-m limit --limit 1/sec ; =
-m limit --limit 5/second ; -m limit --limit 5/sec
-m limit --limit 10/min ; =
-m limit --limit 10/minute ; -m limit --limit 10/min
-m limit --limit 100/hour ; =
-m limit --limit 7/hour ; =
-m limit --limit 3/day ; FAIL
-m limit --limit 7/s ; -m limit --limit 7/sec
-m limit --limit 7/m ; -m limit --limit 7/min
-m limit --limit 7/h ; -m limit --limit 7/hour
-m limit --limit 7/d ; -m limit --limit 7/day
-m limit --limit 7 ; -m limit --limit 7/sec
-m limit --limit 10000/s ; -m limit --limit 10000/sec
-m limit --limit 10001/s ; FAIL
-m limit --limit 3000/s ; -m limit --limit 3333/sec
-m limit --limit 9999/s ; -m limit --limit 10000/sec
-m limit --limit 100000/min ; -m limit --limit 1666/sec
-m limit --limit 0/s ; FAIL
-m limit --limit 5/foo ; FAIL
-m limit --limit foo ; FAIL
-m limit --limit 1/day --limit-burst 10000 ; FAIL
-m limit --limit-burst 10 ; -m limit --limit 3/hour --limit-burst 10
-m limit --limit-burst 5 ; -m limit --limit 3/hour
-m limit --limit-burst 0 ; FAIL
-m limit --limit-burst 10001 ; FAIL
-m limit --limit 1/s --limit-burst 100 ; -m limit --limit 1/sec --limit-burst 100
-m limit ! --limit 5/s ; FAIL
-m limit --limit 60/min ; -m limit --limit 1/sec
-m limit --limit 90/min ; =
-m limit --limit 61/min ; =
-m limit --limit 1/day --limit-burst 100 ; FAIL
-m limit --limit 1/day --limit-burst 60 ; FAIL
-m limit --limit 1/day --limit-burst 50 ; FAIL
-m limit --limit 1/day --limit-burst 49 ; =
-m limit --limit 3/hour --limit-burst 500 ; =
-m limit --limit 3/hour --limit-burst 5000 ; =
-m limit --limit 2000/s ; -m limit --limit 2000/sec
-m limit --limit 5000/s ; -m limit --limit 5000/sec
-m limit --limit 6000/s ; -m limit --limit 10000/sec
-m limit --limit 10/sec --limit-burst 10000 ; =
-m limit --limit 1/hour --limit-burst 10000 ; =
-m limit --limit 1/hour --limit-burst 1193 ; =
-m limit --limit 1/hour --limit-burst 1200 ; =
-m limit --limit 2/day --limit-burst 5 ; -m limit --limit 2/day
-m limit --limit 2/day ; =
-m limit --limit 1/day ; FAIL
-m limit --limit 5/day ; =
-m limit --limit 4/day ; =
-m limit --limit 6/day ; =
-m limit --limit 24/day ; -m limit --limit 1/hour
-m limit --limit 13/day ; =
-m limit --limit 11/day ; =
-m limit --limit 1/hour --limit-burst 49 ; =
-m limit --limit 120/hour ; -m limit --limit 2/min
-m limit --limit -5/s ; FAIL
-m limit --limit 1.5/s ; -m limit --limit 1/sec
-m limit --limit 1/sec/foo ; FAIL
-m limit --limit 5/hou ; -m limit --limit 5/hour
-m limit --limit 5/S ; -m limit --limit 5/sec
-m limit --limit 5/ ; FAIL
-m limit --limit-burst foo ; FAIL
-m limit --limit 0x10/s ; FAIL
-m limit --limit 010/s ; -m limit --limit 10/sec

# hashlimit
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit 5/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit 5/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode srcip,dstip,srcport,dstport --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip,srcport,dstip,dstport --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode dstport,srcip --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip,dstport --hashlimit-name foo
-m hashlimit --hashlimit-above 5/s --hashlimit-mode srcip --hashlimit-name foo ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit ! --hashlimit-upto 5/s --hashlimit-mode srcip --hashlimit-name foo ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit ! --hashlimit-above 5/s --hashlimit-mode srcip --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 10 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip --hashlimit-srcmask 24 --hashlimit-dstmask 16 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo --hashlimit-srcmask 24 --hashlimit-dstmask 16
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip,dstip --hashlimit-srcmask 24 --hashlimit-dstmask 16 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip,dstip --hashlimit-name foo --hashlimit-srcmask 24 --hashlimit-dstmask 16
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip --hashlimit-htable-size 100 --hashlimit-htable-max 50 --hashlimit-htable-expire 5000 --hashlimit-htable-gcinterval 2000 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo --hashlimit-htable-size 100 --hashlimit-htable-max 50 --hashlimit-htable-gcinterval 2000 --hashlimit-htable-expire 5000
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip --hashlimit-htable-expire 10000 --hashlimit-htable-gcinterval 1000 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo --hashlimit-htable-expire 10000
-m hashlimit --hashlimit-upto 5/min --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 5/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/hour --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 5/hour --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 100/day --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 100/day --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 1000000/sec --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 1000001/sec --hashlimit-name foo --hashlimit-mode srcip ; FAIL
-m hashlimit --hashlimit-upto 0/sec --hashlimit-name foo --hashlimit-mode srcip ; FAIL
-m hashlimit --hashlimit-upto 7/min --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 7/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 333333/sec --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 333333/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 10kb/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 10kb/s --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 10b/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 0b/s --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 1mb/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 1mb/s --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 1mb/s --hashlimit-burst 2mb --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 1mb/s --hashlimit-burst 2mb --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 512kb/s --hashlimit-burst 1kb --hashlimit-name foo --hashlimit-mode srcip ; FAIL
-m hashlimit --hashlimit-above 512kb/s --hashlimit-burst 1 --hashlimit-name foo --hashlimit-mode srcip ; FAIL
-m hashlimit --hashlimit-above 5/s --hashlimit-burst 1kb --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 1024 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 5/s --hashlimit-burst 0 --hashlimit-name foo --hashlimit-mode srcip ; FAIL
-m hashlimit --hashlimit-above 1000b/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 992b/s --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 1024b/s --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 1kb/s --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 512kb/min --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 512/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 5/s --hashlimit-rate-interval 10 --hashlimit-name foo --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5/s ; FAIL
-m hashlimit ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode foo --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-name "a b" ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name a b
-m hashlimit --hashlimit-upto 5/s --hashlimit-name a/b ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccddddddddddd ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name aaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccdddddddddddaaaaaaaaaabbbbbbbbbbccccccccccddddddddddd
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-srcmask 33 ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip --hashlimit-srcmask 32 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-mode srcip --hashlimit-srcmask 0 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo --hashlimit-srcmask 0
-m hashlimit --hashlimit-upto 5/s --hashlimit-above 6/s --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5 --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 1kb --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 1kb/day --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 1500kb/s --hashlimit-name foo ; =
-m hashlimit --hashlimit-upto 100b/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 96b/s --hashlimit-name foo
-m hashlimit --hashlimit-upto 16b/s --hashlimit-name foo ; =
-m hashlimit --hashlimit-upto 15b/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 0b/s --hashlimit-name foo
-m hashlimit --hashlimit-upto 0b/s --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5000mb/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5286113568b/s --hashlimit-name foo
-m hashlimit --hashlimit-upto 1gb/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 0b/s --hashlimit-name foo
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 3kb --hashlimit-name foo ; =
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 3000 --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 4000 --hashlimit-name foo ; -m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 6kb --hashlimit-name foo
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 1mb --hashlimit-name foo ; =
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 5000b --hashlimit-name foo ; -m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 6kb --hashlimit-name foo
-m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 10kb --hashlimit-name foo ; -m hashlimit --hashlimit-upto 3kb/s --hashlimit-burst 12kb --hashlimit-name foo
-m hashlimit --hashlimit-upto 3KB/s --hashlimit-name foo ; -m hashlimit --hashlimit-upto 3/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 1000001 --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 20000 --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 20000 --hashlimit-name foo
-m hashlimit --hashlimit-upto 1/day --hashlimit-burst 20000 --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst foo --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 5/fortnight --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto -5/s --hashlimit-name foo ; FAIL
-m hashlimit --hashlimit-upto 90/min --hashlimit-name foo ; -m hashlimit --hashlimit-upto 90/min --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 60/min --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name foo --hashlimit-htable-expire 60000
-m hashlimit --hashlimit-upto 3600/hour --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name foo --hashlimit-htable-expire 3600000
-m hashlimit --hashlimit-upto 86400/day --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1/sec --hashlimit-burst 5 --hashlimit-name foo --hashlimit-htable-expire 86400000
-m hashlimit --hashlimit-upto 7/day --hashlimit-name foo ; -m hashlimit --hashlimit-upto 7/day --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 700000/sec --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 999999/sec --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 1234/sec --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1234/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 1234/min --hashlimit-name foo ; -m hashlimit --hashlimit-upto 1234/min --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-htable-size 0 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-htable-max 0 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-htable-expire 0 ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-name foo --hashlimit-htable-gcinterval 0 ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode srcip,srcip --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode srcip, --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-upto 5/s --hashlimit-name "" ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-mode "" --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-mode srcip --hashlimit-upto 5/min --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/min --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-mode srcip --hashlimit-upto 5/hour --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/hour --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-mode srcip --hashlimit-upto 5/day --hashlimit-name foo ; -m hashlimit --hashlimit-upto 5/day --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo
-m hashlimit --hashlimit-above 5/s --hashlimit-rate-match --hashlimit-name foo1 --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo1 --hashlimit-rate-match
-m hashlimit --hashlimit-above 5/s --hashlimit-burst 5 --hashlimit-rate-match --hashlimit-rate-interval 1 --hashlimit-name foo2 --hashlimit-mode srcip ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo2 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 5/s --hashlimit-rate-match --hashlimit-name foo3 --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode srcip --hashlimit-name foo3 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 5kb/s --hashlimit-rate-match --hashlimit-name foo3 --hashlimit-mode srcip ; -m hashlimit --hashlimit-upto 5kb/s --hashlimit-mode srcip --hashlimit-name foo3 --hashlimit-rate-match
-m hashlimit --hashlimit-above 5/s --hashlimit-rate-interval 1 --hashlimit-name foo ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-above 5/s --hashlimit-rate-interval 4 --hashlimit-name foo ; -m hashlimit --hashlimit-above 5/sec --hashlimit-burst 5 --hashlimit-name foo
-m hashlimit --hashlimit-upto 5kb/s --hashlimit-name bb --hashlimit-htable-expire 15000 ; -m hashlimit --hashlimit-upto 5kb/s --hashlimit-name bb
-m hashlimit --hashlimit-upto 5kb/s --hashlimit-name bb --hashlimit-htable-expire 60000 ; =
-m hashlimit --hashlimit-upto 5kb/s --hashlimit-name bb --hashlimit-burst 5kb --hashlimit-htable-expire 60000 ; -m hashlimit --hashlimit-upto 5kb/s --hashlimit-burst 5kb --hashlimit-name bb
-m hashlimit --hashlimit-upto 5kb/s --hashlimit-name bb --hashlimit-burst 5kb --hashlimit-htable-expire 15000 ; -m hashlimit --hashlimit-upto 5kb/s --hashlimit-burst 5kb --hashlimit-name bb --hashlimit-htable-expire 15000
-m hashlimit --hashlimit-upto 5/s --hashlimit-name bb --hashlimit-htable-expire 1000 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name bb
-m hashlimit --hashlimit-upto 5/min --hashlimit-name bb --hashlimit-htable-expire 60000 ; -m hashlimit --hashlimit-upto 5/min --hashlimit-burst 5 --hashlimit-name bb
-m hashlimit --hashlimit-upto 10b/s --hashlimit-burst 100 --hashlimit-name bb ; FAIL
-m hashlimit --hashlimit-upto 16b/s --hashlimit-burst 100 --hashlimit-name bb ; -m hashlimit --hashlimit-upto 16b/s --hashlimit-burst 112b --hashlimit-name bb
-m hashlimit --hashlimit-upto 1000b/s --hashlimit-burst 992 --hashlimit-name bb ; -m hashlimit --hashlimit-upto 992b/s --hashlimit-burst 992b --hashlimit-name bb
-m hashlimit --hashlimit-upto 1000b/s --hashlimit-burst 1000 --hashlimit-name bb ; -m hashlimit --hashlimit-upto 992b/s --hashlimit-burst 1kb --hashlimit-name bb
-m hashlimit --hashlimit-upto 5xb/s --hashlimit-name bb ; -m hashlimit --hashlimit-upto 0b/s --hashlimit-name bb
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 1mb --hashlimit-name bb ; FAIL
-m hashlimit --hashlimit-upto 5/s --hashlimit-burst 10b --hashlimit-name bb ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 10 --hashlimit-name bb
-m hashlimit --hashlimit 1kb/s --hashlimit-name bb ; -m hashlimit --hashlimit-upto 1kb/s --hashlimit-name bb
-m hashlimit --hashlimit-upto 5/s --hashlimit-name bb --hashlimit-dstmask 0 --hashlimit-mode dstip,dstport ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode dstip,dstport --hashlimit-name bb --hashlimit-dstmask 0
-m hashlimit --hashlimit-upto 5/s --hashlimit-name bb --hashlimit-htable-gcinterval 500 --hashlimit-mode dstip ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-mode dstip --hashlimit-name bb --hashlimit-htable-gcinterval 500
-m hashlimit --hashlimit-upto 30/min --hashlimit-rate-match --hashlimit-name z1 ; -m hashlimit --hashlimit-upto 30/sec --hashlimit-burst 5 --hashlimit-name z1 --hashlimit-htable-expire 60000 --hashlimit-rate-match --hashlimit-rate-interval 60
-m hashlimit --hashlimit-upto 30/min --hashlimit-rate-match --hashlimit-rate-interval 2 --hashlimit-name z2 ; -m hashlimit --hashlimit-upto 30/sec --hashlimit-burst 5 --hashlimit-name z2 --hashlimit-htable-expire 60000 --hashlimit-rate-match --hashlimit-rate-interval 2
-m hashlimit --hashlimit-upto 7/hour --hashlimit-rate-match --hashlimit-name z3 ; -m hashlimit --hashlimit-upto 7/sec --hashlimit-burst 5 --hashlimit-name z3 --hashlimit-htable-expire 3600000 --hashlimit-rate-match --hashlimit-rate-interval 3600
-m hashlimit --hashlimit-upto 3/day --hashlimit-rate-match --hashlimit-name z4 ; -m hashlimit --hashlimit-upto 3/sec --hashlimit-burst 5 --hashlimit-name z4 --hashlimit-htable-expire 86400000 --hashlimit-rate-match --hashlimit-rate-interval 86400
-m hashlimit --hashlimit-upto 5/s --hashlimit-rate-match --hashlimit-name z5 ; -m hashlimit --hashlimit-upto 5/sec --hashlimit-burst 5 --hashlimit-name z5 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 59/min --hashlimit-rate-match --hashlimit-rate-interval 60 --hashlimit-name z6 ; -m hashlimit --hashlimit-upto 59/sec --hashlimit-burst 5 --hashlimit-name z6 --hashlimit-htable-expire 60000 --hashlimit-rate-match --hashlimit-rate-interval 60
-m hashlimit --hashlimit-upto 90/min --hashlimit-rate-match --hashlimit-name z7 ; -m hashlimit --hashlimit-upto 90/sec --hashlimit-burst 5 --hashlimit-name z7 --hashlimit-htable-expire 60000 --hashlimit-rate-match --hashlimit-rate-interval 60
-m hashlimit --hashlimit-upto 1kb/s --hashlimit-rate-match --hashlimit-name z8 ; -m hashlimit --hashlimit-upto 1kb/s --hashlimit-name z8 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 1kb/s --hashlimit-rate-match --hashlimit-rate-interval 1 --hashlimit-name z9 ; -m hashlimit --hashlimit-upto 1kb/s --hashlimit-name z9 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 7/min --hashlimit-rate-match --hashlimit-rate-interval 0 --hashlimit-name z10 ; FAIL
-m hashlimit --hashlimit-upto 7/s --hashlimit-rate-match --hashlimit-rate-interval 0 --hashlimit-name z11 ; FAIL
-m hashlimit --hashlimit-upto 7/s --hashlimit-rate-match --hashlimit-rate-interval 7 --hashlimit-name z12 ; -m hashlimit --hashlimit-upto 7/sec --hashlimit-burst 5 --hashlimit-name z12 --hashlimit-rate-match --hashlimit-rate-interval 7
-m hashlimit --hashlimit-upto 7/min --hashlimit-rate-match --hashlimit-rate-interval 1 --hashlimit-name z13 ; -m hashlimit --hashlimit-upto 7/sec --hashlimit-burst 5 --hashlimit-name z13 --hashlimit-htable-expire 60000 --hashlimit-rate-match
-m hashlimit --hashlimit-upto 1000000/min --hashlimit-rate-match --hashlimit-name z14 ; -m hashlimit --hashlimit-upto 1000000/sec --hashlimit-burst 5 --hashlimit-name z14 --hashlimit-htable-expire 60000 --hashlimit-rate-match --hashlimit-rate-interval 60
-m hashlimit --hashlimit-upto 10000000/min --hashlimit-rate-match --hashlimit-name z14 ; FAIL
-m hashlimit --hashlimit-upto 100000000/min --hashlimit-rate-match --hashlimit-name z16 ; FAIL
-m hashlimit --hashlimit-upto 7/s --hashlimit-rate-interval 7 --hashlimit-name z15 ; -m hashlimit --hashlimit-upto 7/sec --hashlimit-burst 5 --hashlimit-name z15
-m hashlimit --hashlimit-upto 7/s --hashlimit-rate-interval 0 --hashlimit-name z15 ; FAIL
-m hashlimit --hashlimit-upto 10/hour --hashlimit-rate-match --hashlimit-htable-expire 5 --hashlimit-name z17 ; -m hashlimit --hashlimit-upto 10/sec --hashlimit-burst 5 --hashlimit-name z17 --hashlimit-htable-expire 5 --hashlimit-rate-match --hashlimit-rate-interval 3600
-m hashlimit --hashlimit-upto 10/hour --hashlimit-rate-match --hashlimit-htable-expire 3600000 --hashlimit-name z18 ; -m hashlimit --hashlimit-upto 10/sec --hashlimit-burst 5 --hashlimit-name z18 --hashlimit-htable-expire 3600000 --hashlimit-rate-match --hashlimit-rate-interval 3600
-m hashlimit --hashlimit-upto 10/hour --hashlimit-rate-match --hashlimit-htable-expire 1000 --hashlimit-name z19 ; -m hashlimit --hashlimit-upto 10/sec --hashlimit-burst 5 --hashlimit-name z19 --hashlimit-rate-match --hashlimit-rate-interval 3600

# connlimit
-m connlimit --connlimit-above 3 ; -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr
-m connlimit --connlimit-upto 3 ; -m connlimit --connlimit-upto 3 --connlimit-mask 32 --connlimit-saddr
-m connlimit ! --connlimit-above 3 ; -m connlimit --connlimit-upto 3 --connlimit-mask 32 --connlimit-saddr
-m connlimit ! --connlimit-upto 3 ; -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr
-m connlimit --connlimit-above 3 --connlimit-mask 24 ; -m connlimit --connlimit-above 3 --connlimit-mask 24 --connlimit-saddr
-m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr ; =
-m connlimit --connlimit-above 3 --connlimit-daddr ; -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-daddr
-m connlimit --connlimit-above 3 --connlimit-mask 0 ; -m connlimit --connlimit-above 3 --connlimit-mask 0 --connlimit-saddr
-m connlimit --connlimit-above 3 --connlimit-mask 33 ; -m connlimit --connlimit-above 3 --connlimit-mask 32 --connlimit-saddr
-m connlimit --connlimit-above 0 ; -m connlimit --connlimit-above 0 --connlimit-mask 32 --connlimit-saddr
-m connlimit --connlimit-above foo ; FAIL
-m connlimit --connlimit-above 3 --connlimit-upto 4 ; FAIL
-m connlimit ; FAIL
-m connlimit --connlimit-above 3 --connlimit-saddr --connlimit-daddr ; FAIL
-m connlimit --connlimit-above 4294967295 ; -m connlimit --connlimit-above 4294967295 --connlimit-mask 32 --connlimit-saddr
-m connlimit --connlimit-above 4294967296 ; FAIL
-m connlimit --connlimit-above 3 --connlimit-mask foo ; FAIL
-m connlimit --connlimit-above 3 --connlimit-mask -1 ; FAIL
-m connlimit --connlimit-above 3 --connlimit-mask 255.255.255.0 ; -m connlimit --connlimit-above 3 --connlimit-mask 24 --connlimit-saddr
-m connlimit --connlimit-upto 0x3 --connlimit-mask 0x10 ; -m connlimit --connlimit-upto 3 --connlimit-mask 16 --connlimit-saddr
-m connlimit --connlimit-saddr ; FAIL

# quota
-m quota --quota 1000 ; =
-m quota ! --quota 1000 ; =
-m quota --quota 0 ; =
-m quota ; FAIL
-m quota --quota foo ; FAIL
-m quota --quota 18446744073709551615 ; =
-m quota --quota 18446744073709551616 ; FAIL
-m quota --quota 0x10 ; -m quota --quota 16
-m quota --quota -1 ; FAIL

# mac
-m mac --mac-source 02:00:00:00:00:fe ; =
-m mac --mac-source 2:0:0:0:0:FE ; -m mac --mac-source 02:00:00:00:00:fe
-m mac ! --mac-source 02:00:00:00:00:fe ; =
-m mac --mac-source 02:00:00:00:00 ; FAIL
-m mac --mac-source foo ; FAIL
-m mac ; FAIL
[filter OUTPUT] -m mac --mac-source 02:00:00:00:00:fe ; FAIL
[mangle POSTROUTING] -m mac --mac-source 02:00:00:00:00:fe ; FAIL
[mangle PREROUTING] -m mac --mac-source 02:00:00:00:00:fe ; =
-m mac --mac-source 02-00-00-00-00-fe ; FAIL
-m mac --mac-source 02:00:00:00:00:fe:11 ; FAIL
-m mac --mac-source 02:00:00:00:00:100 ; FAIL
-m mac --mac-source 02:00:00:00:00: ; -m mac --mac-source 02:00:00:00:00:00
-m mac --mac-source 2:0:0:0:0:g ; FAIL
[filter FORWARD] -m mac --mac-source 2:0:0:0:0:1 ; -m mac --mac-source 02:00:00:00:00:01

# pkttype
-m pkttype --pkt-type unicast ; =
-m pkttype --pkt-type broadcast ; =
-m pkttype ! --pkt-type multicast ; =
-m pkttype --pkt-type host ; -m pkttype --pkt-type unicast
-m pkttype --pkt-type bcast ; -m pkttype --pkt-type broadcast
-m pkttype --pkt-type otherhost ; =
-m pkttype --pkt-type outgoing ; FAIL
-m pkttype --pkt-type foo ; FAIL
-m pkttype --pkt-type UNICAST ; -m pkttype --pkt-type unicast
-m pkttype --pkt-type mcast ; -m pkttype --pkt-type multicast
-m pkttype --pkt-type loopback ; FAIL
-m pkttype ; FAIL
-m pkttype --pkt-type uni ; FAIL
-m pkttype --pkt-type to-someone-else ; FAIL
[filter OUTPUT] -m pkttype --pkt-type host ; -m pkttype --pkt-type unicast

# ecn
-p tcp -m ecn --ecn-tcp-cwr ; =
-p tcp -m ecn ! --ecn-tcp-cwr --ecn-tcp-ece ; -p tcp -m ecn --ecn-tcp-ece ! --ecn-tcp-cwr
-p tcp -m ecn --ecn-tcp-ece ! --ecn-tcp-cwr --ecn-ip-ect 2 ; =
-m ecn --ecn-tcp-ece ; FAIL
-m ecn --ecn-ip-ect 0 ; =
-m ecn ! --ecn-ip-ect 3 ; =
-m ecn --ecn-ip-ect 4 ; FAIL
-m ecn --ecn-ip-ect foo ; FAIL
-m ecn ; FAIL
-p udp -m ecn --ecn-tcp-ece ; FAIL
-m ecn --ecn-ip-ect 0x2 ; -m ecn --ecn-ip-ect 2

# string
-m string --algo bm --string foo ; -m string --string "foo" --algo bm
-m string --algo kmp --string "foo bar" ; -m string --string "foo bar" --algo kmp
-m string --algo bm ! --string foo --from 3 --to 90 ; -m string ! --string "foo" --algo bm --from 3 --to 90
-m string --string foo ; FAIL
-m string --algo bm --hex-string "|de ad|x|be|" ; -m string --hex-string "|dead78be|" --algo bm
-m string --algo bm --hex-string "|dead|" ; -m string --hex-string "|dead|" --algo bm
-m string --algo bm --hex-string "plain" ; -m string --string "plain" --algo bm
-m string --algo bm --string "a\"b" ; -m string --string "a\"b" --algo bm
-m string --algo bm --string "a'b" ; -m string --string "a'b" --algo bm
-m string --algo bm --string "a|b" ; -m string --string "a|b" --algo bm
-m string --algo bm --hex-string "a|7c|b" ; -m string --string "a|b" --algo bm
-m string --algo bm --string foo --icase ; -m string --string "foo" --algo bm --icase
-m string --algo bm --string foo --to 65535 ; -m string --string "foo" --algo bm
-m string --algo bm --string foo --from 0 ; -m string --string "foo" --algo bm
-m string --algo bm --string foo --from 5 --to 3 ; FAIL
-m string --algo bm --string foo --from 65536 ; FAIL
-m string --algo bm --string "" ; FAIL
-m string --algo foo --string foo ; FAIL
-m string --algo fsm --string foo ; FAIL
-m string --algo bm ; FAIL
-m string --algo bm --hex-string "|zz|" ; FAIL
-m string --algo bm --hex-string "|d|" ; FAIL
-m string --algo bm --hex-string "|de" ; FAIL
-m string --algo bm --hex-string "\|de" ; FAIL
-m string --algo bm --string "tab	x" ; -m string --hex-string "|7461620978|" --algo bm
-m string --algo bm --string "é" ; -m string --hex-string "|c3a9|" --algo bm
-m string --algo bm --string "a\\b" ; -m string --string "a\\b" --algo bm
-m string --algo bm --string "-x" ; -m string --string "-x" --algo bm
-m string --algo bm --string "a.b" ; -m string --string "a.b" --algo bm
-m string --algo bm --string foo --string bar ; FAIL
-m string --algo bm --hex-string "|00|"  ; -m string --hex-string "|00|" --algo bm
-m string --algo bm --hex-string "|0a|abc"  ; -m string --hex-string "|0a616263|" --algo bm
-m string --algo bm --hex-string "|41|abc"  ; -m string --string "Aabc" --algo bm
-m string --algo bm --hex-string "GET |0d0a|"  ; -m string --hex-string "|474554200d0a|" --algo bm
-m string --algo bm --string "a	b" --hex-string "|de|" ; FAIL
-m string --algo bm --hex-string "a\|b" ; FAIL
-m string --algo bm --hex-string "a\\|b" ; -m string --string "a|b" --algo bm
-m string --algo bm --string " a" ; -m string --string " a" --algo bm
-m string --algo bm --string "a\\" ; -m string --hex-string "|615c|" --algo bm
-m string --algo bm --hex-string "|DE AD  BE|" ; FAIL
-m string --algo bm --hex-string "|d e|" ; FAIL
-m string --algo bm --hex-string "||" ; FAIL
-m string --algo bm --hex-string "a||b" ; FAIL
-m string --algo BM --string foo ; FAIL
-m string ! --algo bm --string foo ; FAIL
-m string --algo bm ! --hex-string "|de|" ; -m string ! --hex-string "|de|" --algo bm
-m string --algo bm ! --icase --string foo ; FAIL
-m string --algo aaaaaaaaaaaaaaaaaaaaaaaaa --string foo ; FAIL
-m string --algo bm --string foo --from 10 --to 10 ; -m string --string "foo" --algo bm --from 10 --to 10
-m string --algo bm --string foo --from 0x10 ; -m string --string "foo" --algo bm --from 16
-m string --algo bm --string "a"b" ; FAIL
-m string --algo bm --string a~b ; -m string --string "a~b" --algo bm
-m string --algo bm --string foo --to 70000 ; FAIL
-m string --algo bm --string "a\\\"b" ; -m string --string "a\\\"b" --algo bm
-m string --algo bm --string "a'\"b" ; -m string --string "a'\"b" --algo bm
-m string --algo bm --string a\|b --from 010 ; -m string --string "a\\|b" --algo bm --from 8

# u32
-m u32 --u32 "0 >> 22 & 0x3C @ 4 = 0" ; -m u32 --u32 "0x0>>0x16&0x3c@0x4=0x0"
-m u32 --u32 "0=1" ; -m u32 --u32 "0x0=0x1"
-m u32 --u32 "6&0xFF=0x6 && 4&0x1FFF=0 && 0>>22&0x3C@12>>26&0x3C@0=0x52:0x60,7" ; -m u32 --u32 "0x6&0xff=0x6&&0x4&0x1fff=0x0&&0x0>>0x16&0x3c@0xc>>0x1a&0x3c@0x0=0x52:0x60,0x7"
-m u32 --u32 "0=1,2,3:4" ; -m u32 --u32 "0x0=0x1,0x2,0x3:0x4"
-m u32 ! --u32 "0=1" ; -m u32 ! --u32 "0x0=0x1"
-m u32 --u32 "0<<3=1" ; -m u32 --u32 "0x0<<0x3=0x1"
-m u32 --u32 "foo" ; FAIL
-m u32 --u32 "0" ; FAIL
-m u32 --u32 "0=" ; FAIL
-m u32 --u32 "0=5:3" ; -m u32 --u32 "0x0=0x5:0x3"
-m u32 --u32 "0=:3" ; FAIL
-m u32 --u32 "0=3:" ; FAIL
-m u32 ; FAIL
-m u32 --u32 "0=1,2,3,4,5,6,7,8,9,10,11" ; FAIL
-m u32 --u32 "0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1" ; -m u32 --u32 "0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1&&0x0=0x1"
-m u32 --u32 "0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1&&0=1" ; FAIL
-m u32 --u32 "0&1&2&3&4&5&6&7&8&9=1" ; -m u32 --u32 "0x0&0x1&0x2&0x3&0x4&0x5&0x6&0x7&0x8&0x9=0x1"
-m u32 --u32 "0&1&2&3&4&5&6&7&8&9&10=1" ; FAIL
-m u32 --u32 "0&1&2&3&4&5&6&7&8&9&10&11=1" ; FAIL
-m u32 --u32 "0 = 010" ; -m u32 --u32 "0x0=0x8"
-m u32 --u32 "0=0x100000000" ; FAIL
-m u32 --u32 "0@0=1" ; -m u32 --u32 "0x0@0x0=0x1"
-m u32 --u32 "0|0=1" ; FAIL
-m u32 --u32 "0=1 0=2" ; FAIL
-m u32 --u32 "0=1&&" ; FAIL
-m u32 --u32 "" ; FAIL
-m u32 --u32 "0&0xff>>3=1 && 4=2" ; -m u32 --u32 "0x0&0xff>>0x3=0x1&&0x4=0x2"
-m u32 --u32 "0=1,2:3 , 4" ; -m u32 --u32 "0x0=0x1,0x2:0x3,0x4"
-m u32 --u32 "0=1&" ; FAIL
-m u32 --u32 "0=1&&foo=2" ; FAIL
-m u32 --u32 "-1=1" ; FAIL
-m u32 --u32 "0=1 && " ; FAIL
-m u32 --u32 " 0 = 1 " ; -m u32 --u32 "0x0=0x1"
-m u32 --u32 "0=0x1:0xFF,2" ; -m u32 --u32 "0x0=0x1:0xff,0x2"
-m u32 --u32 "0 =1&& 2@3 >>4<<5&6=7:8,9" ; -m u32 --u32 "0x0=0x1&&0x2@0x3>>0x4<<0x5&0x6=0x7:0x8,0x9"

# time
-m time ; -m time --datestop 2038-01-19T03:14:07
-m time --timestart 08:00 --timestop 17:00 ; -m time --timestart 08:00:00 --timestop 17:00:00 --datestop 2038-01-19T03:14:07
-m time --timestart 08:00:30 --timestop 17:00:01 --weekdays Mon,Tue,Fri ; -m time --timestart 08:00:30 --timestop 17:00:01 --weekdays Mon,Tue,Fri --datestop 2038-01-19T03:14:07
-m time ! --weekdays Sa,Su ; -m time --weekdays Mon,Tue,Wed,Thu,Fri --datestop 2038-01-19T03:14:07
-m time --weekdays 1,7 ; -m time --weekdays Mon,Sun --datestop 2038-01-19T03:14:07
-m time --monthdays 1,15,31 ; -m time --monthdays 1,15,31 --datestop 2038-01-19T03:14:07
-m time ! --monthdays 1st,2 ; FAIL
-m time --datestart 2020-01-01 --datestop 2021-06-01T12:00:00 ; -m time --datestart 2020-01-01T00:00:00 --datestop 2021-06-01T12:00:00
-m time --datestart 2020  ; -m time --datestart 2020-01-01T00:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-05 ; -m time --datestart 2020-05-01T00:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-05-06T07 ; -m time --datestart 2020-05-06T07:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-05-06T07:08 ; -m time --datestart 2020-05-06T07:08:00 --datestop 2038-01-19T03:14:07
-m time --kerneltz --timestart 8:00 ; -m time --timestart 08:00:00 --timestop 23:59:59 --datestop 2038-01-19T03:14:07 --kerneltz
-m time --utc --timestart 8:00 ; -m time --timestart 08:00:00 --timestop 23:59:59 --datestop 2038-01-19T03:14:07
-m time --timestart 23:00 --timestop 1:00 --contiguous ; -m time --timestart 23:00:00 --timestop 01:00:00 --datestop 2038-01-19T03:14:07 --contiguous
-m time --contiguous ; FAIL
-m time --timestart 1:00 --timestop 2:00 --contiguous ; FAIL
-m time --timestart 25:00 ; FAIL
-m time --timestart 23:60 ; FAIL
-m time --timestart foo ; FAIL
-m time --weekdays Foo ; FAIL
-m time --weekdays 8 ; -m time --weekdays  --datestop 2038-01-19T03:14:07
-m time --monthdays 32 ; FAIL
-m time --monthdays 0 ; -m time --monthdays  --datestop 2038-01-19T03:14:07
-m time --datestart 2020-13-01 ; FAIL
-m time --datestart 1969-01-01 ; FAIL
-m time --datestop 2038-01-19T04:17:07 ; =
-m time --datestop 2040-01-19T04:17:07 ; FAIL
-m time --weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun ; -m time --datestop 2038-01-19T03:14:07
-m time --timestart 00:00 --timestop 23:59:59 ; -m time --datestop 2038-01-19T03:14:07
-m time --timestop 10:00 ; -m time --timestart 00:00:00 --timestop 10:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-01-01T00:00:00 --timestart 10:00 --weekdays Mo --monthdays 3 --kerneltz --datestop 2022-01-01 ; -m time --timestart 10:00:00 --timestop 23:59:59 --monthdays 3 --weekdays Mon --datestart 2020-01-01T00:00:00 --datestop 2022-01-01T00:00:00 --kerneltz
-m time --datestart 2022-01-01 --datestop 2021-01-01 ; -m time --datestart 2022-01-01T00:00:00 --datestop 2021-01-01T00:00:00
-m time --localtz ; -m time --datestop 2038-01-19T03:14:07 --kerneltz
-m time --timestart 10:00 --timestop 10:00 ; -m time --timestart 10:00:00 --timestop 10:00:00 --datestop 2038-01-19T03:14:07
-m time --timestart 12:00 --timestop 10:00 ; -m time --timestart 12:00:00 --timestop 10:00:00 --datestop 2038-01-19T03:14:07
-m time ! --timestart 12:00 ; FAIL
-m time --weekdays Mon --weekdays Tue ; FAIL
-m time --weekdays Mon,tue ; FAIL
-m time --weekdays MO ; FAIL
-m time --weekdays monday ; FAIL
-m time --weekdays M ; FAIL
-m time --weekdays T ; FAIL
-m time --weekdays 0 ; FAIL
-m time --weekdays "" ; -m time --weekdays  --datestop 2038-01-19T03:14:07
-m time ! --weekdays Mon,Tue,Wed,Thu,Fri,Sat,Sun ; -m time --weekdays  --datestop 2038-01-19T03:14:07
-m time ! --monthdays 2,3 ; -m time --monthdays 1,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31 --datestop 2038-01-19T03:14:07
-m time --monthdays 1, ; -m time --monthdays 1 --datestop 2038-01-19T03:14:07
-m time --monthdays "" ; -m time --monthdays  --datestop 2038-01-19T03:14:07
-m time --monthdays 1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31 ; -m time --datestop 2038-01-19T03:14:07
-m time --timestart 24:00 ; FAIL
-m time --timestart 08:00:60 ; FAIL
-m time --timestart 8 ; FAIL
-m time --timestart 08:0 ; -m time --timestart 08:00:00 --timestop 23:59:59 --datestop 2038-01-19T03:14:07
-m time --timestart 8:5:3 ; -m time --timestart 08:05:03 --timestop 23:59:59 --datestop 2038-01-19T03:14:07
-m time --timestart 08:00:00:00 ; FAIL
-m time --timestart 00:00:00 --timestop 00:00 ; -m time --timestart 00:00:00 --timestop 00:00:00 --datestop 2038-01-19T03:14:07
-m time --timestart -1:00 ; FAIL
-m time --datestart 2020-05-06T7:8:9 ; -m time --datestart 2020-05-06T07:08:09 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-5-6 ; -m time --datestart 2020-05-06T00:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-02-31 ; -m time --datestart 2020-03-02T00:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 2020-05-06T24:00 ; FAIL
-m time --datestart 2020-05-06T ; -m time --datestart 2020-05-06T00:00:00 --datestop 2038-01-19T03:14:07
-m time --datestart 20200506 ; FAIL
-m time --datestop 2020 ; -m time --datestop 2020-01-01T00:00:00
-m time --datestart 2020-05-06 07:00 ; FAIL
-m time --utc --kerneltz ; FAIL
-m time --utc ; -m time --datestop 2038-01-19T03:14:07
-m time --localtz --kerneltz ; -m time --datestop 2038-01-19T03:14:07 --kerneltz
-m time --datestop 2038-01-20 ; -m time --datestop 2038-01-20T00:00:00
-m time --datestop 2037-12-31T23:59:59 ; =
-m time --datestart 1970-01-01 ; -m time --datestop 2038-01-19T03:14:07
-m time --weekdays Mon,9 ; -m time --weekdays Mon --datestop 2038-01-19T03:14:07
-m time --weekdays -1 ; -m time --weekdays  --datestop 2038-01-19T03:14:07
-m time --weekdays Monday ; -m time --weekdays Mon --datestop 2038-01-19T03:14:07
-m time --weekdays Mo,Tu,We,Th,Fr,Sa,Su ; -m time --datestop 2038-01-19T03:14:07
-m time --weekdays Tues ; -m time --weekdays Tue --datestop 2038-01-19T03:14:07
-m time --monthdays 1st ; FAIL
-m time --monthdays 1x ; FAIL
-m time --monthdays 100 ; -m time --monthdays 10 --datestop 2038-01-19T03:14:07
-m time --monthdays 07 ; -m time --monthdays 7 --datestop 2038-01-19T03:14:07

# sctp
-p sctp -m sctp --dport 80 ; =
-p sctp --dport 80 ! --sport 1:5 ; -p sctp -m sctp ! --sport 1:5 --dport 80
-p sctp --chunk-types all INIT ; -p sctp -m sctp --chunk-types all INIT
-p sctp --chunk-types any INIT,DATA ; -p sctp -m sctp --chunk-types any DATA,INIT
-p sctp --chunk-types only DATA:Be ; -p sctp -m sctp --chunk-types only DATA:Be
-p sctp ! --chunk-types all DATA,INIT ; -p sctp -m sctp ! --chunk-types all DATA,INIT
-p sctp --chunk-types all ALL ; -p sctp -m sctp --chunk-types all ALL
-p sctp --chunk-types all NONE ; -p sctp -m sctp --chunk-types all NONE
-p sctp --chunk-types any ABORT:T ; -p sctp -m sctp --chunk-types any ABORT:T
-p sctp --chunk-types any ABORT:t,SHUTDOWN_COMPLETE ; -p sctp -m sctp --chunk-types any ABORT:t,SHUTDOWN_COMPLETE
-p sctp --chunk-types any DATA:iUbE ; -p sctp -m sctp --chunk-types any DATA:iUbE
-p sctp --chunk-types any FOO ; FAIL
-p sctp --chunk-types foo INIT ; FAIL
-p sctp --chunk-types any INIT,INIT_ACK,SACK,HEARTBEAT,HEARTBEAT_ACK,ABORT,SHUTDOWN,SHUTDOWN_ACK,ERROR,COOKIE_ECHO,COOKIE_ACK,ECN_ECNE,ECN_CWR,SHUTDOWN_COMPLETE,ASCONF,ASCONF_ACK,FORWARD_TSN,DATA,I_DATA,RE_CONFIG,PAD,I_FORWARD_TSN,AUTH ; FAIL
-m sctp --dport 80 ; FAIL
-p sctp -m sctp ; =
-p sctp --dport 90:80 ; FAIL
-p sctp ! --dport 0:65535 ; -p sctp -m sctp ! --dport 0:65535
-p sctp --dport 80 --chunk-types any INIT:X ; FAIL
-p sctp --chunk-types any init ; -p sctp -m sctp --chunk-types any INIT
-p sctp --chunk-types ANY INIT ; -p sctp -m sctp --chunk-types any INIT
-p sctp --chunk-types any INIT, ; -p sctp -m sctp --chunk-types any INIT
-p sctp --chunk-types any DATA: ; -p sctp -m sctp --chunk-types any DATA
-p sctp --chunk-types any DATA:bBeE ; -p sctp -m sctp --chunk-types any DATA:BE
-p sctp --chunk-types any DATA:z ; FAIL
-p sctp --dport 65536 ; FAIL
-p sctp --dport 80: ; -p sctp -m sctp --dport 80:65535
-p sctp --dport :80 ; -p sctp -m sctp --dport 0:80
-p sctp --dport 5 --dport 6 ; FAIL
-p sctp ! --chunk-types only NONE ; -p sctp -m sctp ! --chunk-types only NONE
-p sctp --chunk-types any DATA:I,ABORT,SHUTDOWN_COMPLETE:T ; -p sctp -m sctp --chunk-types any DATA:I,ABORT,SHUTDOWN_COMPLETE:T
-p sctp --chunk-types any INIT,INIT_ACK,SACK,HEARTBEAT,HEARTBEAT_ACK,ABORT,SHUTDOWN,SHUTDOWN_ACK,ERROR,COOKIE_ECHO,COOKIE_ACK,ECN_ECNE,ECN_CWR,SHUTDOWN_COMPLETE,ASCONF,ASCONF_ACK,FORWARD_TSN,DATA ; -p sctp -m sctp --chunk-types any DATA,INIT,INIT_ACK,SACK,HEARTBEAT,HEARTBEAT_ACK,ABORT,SHUTDOWN,SHUTDOWN_ACK,ERROR,COOKIE_ECHO,COOKIE_ACK,ECN_ECNE,ECN_CWR,SHUTDOWN_COMPLETE,ASCONF_ACK,FORWARD_TSN,ASCONF
-p sctp --chunk-types any I_DATA ; -p sctp -m sctp --chunk-types any I_DATA
-p sctp --chunk-types any RE_CONFIG ; -p sctp -m sctp --chunk-types any RE_CONFIG
-p sctp --chunk-types any PAD ; -p sctp -m sctp --chunk-types any PAD
-p sctp --chunk-types any I_FORWARD_TSN ; -p sctp -m sctp --chunk-types any I_FORWARD_TSN
-p sctp --chunk-types any ASCONF,FORWARD_TSN ; -p sctp -m sctp --chunk-types any FORWARD_TSN,ASCONF

# dccp
-p dccp --dport 80 ; -p dccp -m dccp --dport 80
-p dccp --dport 80 ! --sport 90:100 ; -p dccp -m dccp ! --sport 90:100 --dport 80
-p dccp --dccp-types REQUEST,RESPONSE ; -p dccp -m dccp --dccp-types REQUEST,RESPONSE
-p dccp ! --dccp-types INVALID ; -p dccp -m dccp ! --dccp-types INVALID
-p dccp --dccp-option 3 ; -p dccp -m dccp --dccp-option 3
-p dccp ! --dccp-option 3 ; -p dccp -m dccp ! --dccp-option 3
-p dccp -m dccp ; =
-p dccp --dccp-types FOO ; FAIL
-m dccp --dport 3 ; FAIL
-p dccp --dccp-types DATA,ACK,DATAACK,CLOSEREQ,CLOSE,RESET,SYNC,SYNCACK,INVALID,REQUEST,RESPONSE ; -p dccp -m dccp --dccp-types REQUEST,RESPONSE,DATA,ACK,DATAACK,CLOSEREQ,CLOSE,RESET,SYNC,SYNCACK,INVALID
-p dccp --dport 90:80 ; -p dccp -m dccp --dport 90:80
-p dccp --dport 65536 ; -p dccp -m dccp --dport 0
-p dccp --dport :80 ; -p dccp -m dccp --dport 0:80
-p dccp --dccp-types request ; -p dccp -m dccp --dccp-types REQUEST
-p dccp --dccp-option 256 ; FAIL
-p dccp --dccp-option 0 ; FAIL
-p dccp --dport 0:65535 ; -p dccp -m dccp --dport 0:65535
-p dccp --sport 5 --sport 6 ; FAIL

# connbytes
-m connbytes --connbytes 100 --connbytes-dir both --connbytes-mode bytes ; -m connbytes --connbytes 100 --connbytes-mode bytes --connbytes-dir both
-m connbytes --connbytes 100:200 --connbytes-dir original --connbytes-mode packets ; -m connbytes --connbytes 100:200 --connbytes-mode packets --connbytes-dir original
-m connbytes --connbytes :200 --connbytes-dir reply --connbytes-mode avgpkt ; -m connbytes --connbytes 0:200 --connbytes-mode avgpkt --connbytes-dir reply
-m connbytes ! --connbytes 100: --connbytes-dir reply --connbytes-mode avgpkt ; -m connbytes ! --connbytes 100 --connbytes-mode avgpkt --connbytes-dir reply
-m connbytes --connbytes 200:100 --connbytes-dir reply --connbytes-mode avgpkt ; FAIL
-m connbytes --connbytes 100  ; FAIL
-m connbytes --connbytes 100 --connbytes-dir both ; FAIL
-m connbytes --connbytes-dir both --connbytes-mode bytes ; FAIL
-m connbytes --connbytes foo --connbytes-dir both --connbytes-mode bytes ; FAIL
-m connbytes --connbytes 1 --connbytes-dir foo --connbytes-mode bytes ; FAIL
-m connbytes --connbytes 1 --connbytes-dir both --connbytes-mode foo ; FAIL
-m connbytes --connbytes 0:18446744073709551615 --connbytes-dir both --connbytes-mode bytes ; -m connbytes --connbytes 0 --connbytes-mode bytes --connbytes-dir both
-m connbytes --connbytes 0 --connbytes-dir both --connbytes-mode bytes ; -m connbytes --connbytes 0 --connbytes-mode bytes --connbytes-dir both
-m connbytes --connbytes 5:5 --connbytes-dir both --connbytes-mode bytes ; -m connbytes --connbytes 5:5 --connbytes-mode bytes --connbytes-dir both
-m connbytes --connbytes : --connbytes-dir both --connbytes-mode bytes ; -m connbytes --connbytes 0 --connbytes-mode bytes --connbytes-dir both
-m connbytes ! --connbytes 5:9 --connbytes-dir both --connbytes-mode bytes ; -m connbytes ! --connbytes 5:9 --connbytes-mode bytes --connbytes-dir both
-m connbytes --connbytes 1 --connbytes-dir ORIGINAL --connbytes-mode bytes ; FAIL
-m connbytes --connbytes 10:20 ! --connbytes-dir both --connbytes-mode bytes ; FAIL
-m connbytes --connbytes 1:2:3 --connbytes-dir both --connbytes-mode bytes ; FAIL

# realm
-m realm --realm 1 ; -m realm --realm 0x1
-m realm ! --realm 0x1/0xff ; =
-m realm --realm foo ; FAIL
-m realm --realm 0x1ff/0xff ; =
-m realm ; FAIL
-m realm --realm 0x100000000 ; FAIL
-m realm --realm cosmos ; =
-m realm --realm 1/ ; FAIL
-m realm --realm 10 ; -m realm --realm 0xa
-m realm --realm 0 ; -m realm --realm cosmos
[filter OUTPUT] -m realm --realm 1 ; -m realm --realm 0x1
[mangle PREROUTING] -m realm --realm 1 ; FAIL

# rpfilter
[raw PREROUTING] -m rpfilter ; =
[raw PREROUTING] -m rpfilter --invert ; =
[raw PREROUTING] -m rpfilter --loose --validmark --accept-local --invert ; =
[mangle PREROUTING] -m rpfilter --invert --accept-local --loose ; -m rpfilter --loose --accept-local --invert
[mangle PREROUTING] -m rpfilter ! --loose ; FAIL
-m rpfilter --loose ; FAIL
[mangle INPUT] -m rpfilter --loose ; FAIL
[nat PREROUTING] -m rpfilter --loose ; FAIL
[filter OUTPUT] -m rpfilter ; FAIL

# tcpmss
-p tcp -m tcpmss --mss 100 ; =
-p tcp -m tcpmss --mss 100:200 ; =
-p tcp -m tcpmss ! --mss 100: ; -p tcp -m tcpmss ! --mss 100:65535
-p tcp -m tcpmss --mss 200:100 ; FAIL
-m tcpmss --mss 100 ; FAIL
-p tcp --syn -m tcpmss --mss :100 ; -p tcp -m tcp --tcp-flags FIN,SYN,RST,ACK SYN -m tcpmss --mss 0:100
-p tcp -m tcpmss --mss 65536 ; FAIL
-p tcp -m tcpmss ; FAIL
-p udp -m tcpmss --mss 1 ; FAIL


# ipvs
-m ipvs --ipvs ; =
-m ipvs ! --ipvs ; =
-m ipvs --vaddr 10.0.0.1 ; =
-m ipvs --vaddr 10.0.0.1/32 ; -m ipvs --vaddr 10.0.0.1
-m ipvs --vaddr 10.0.0.7/24 ; =
-m ipvs ! --vaddr 10.0.0.0/24 --vport 80 --vproto tcp --vdir ORIGINAL --vmethod MASQ --vportctl 21 ; -m ipvs --vproto 6 ! --vaddr 10.0.0.0/24 --vport 80 --vdir ORIGINAL --vmethod MASQ --vportctl 21
-m ipvs --vproto 6 --vaddr 1.2.3.4 --vport 80 ; =
-m ipvs --vproto udp ; -m ipvs --vproto 17
-m ipvs ! --vproto 17 ! --vport 53 ; =
-m ipvs --vdir REPLY ; =
-m ipvs --vdir original ; -m ipvs --vdir ORIGINAL
-m ipvs ! --vdir REPLY ; FAIL
-m ipvs --vdir FOO ; FAIL
-m ipvs --vmethod GATE ; =
-m ipvs ! --vmethod IPIP ; =
-m ipvs --vmethod masq ; -m ipvs --vmethod MASQ
-m ipvs --vmethod FOO ; FAIL
-m ipvs ! --vportctl 21 ; =
-m ipvs --vport http ; -m ipvs --vport 80
-m ipvs --vport 65536 ; -m ipvs --vport 0
-m ipvs --ipvs --vport 3 ; -m ipvs --vport 3
-m ipvs ! --ipvs --vport 3 ; FAIL
-m ipvs ; FAIL
-m ipvs --vaddr 10.0.0.0/255.0.255.0 ; -m ipvs --vaddr 10.0.0.0
-m ipvs --vproto foo ; FAIL
-m ipvs --vproto 200 ; =
-m ipvs --vport 3 --vport 4 ; FAIL
-m ipvs --vport 0x10 ; FAIL
-m ipvs --vaddr 0.0.0.0/0 ; =

# socket
[mangle PREROUTING] -p tcp -m socket --transparent ; =
[mangle PREROUTING] -p tcp -m socket --nowildcard --restore-skmark --transparent ; -p tcp -m socket --transparent --nowildcard --restore-skmark
[mangle PREROUTING] -m socket ! --transparent ; FAIL
[mangle FORWARD] -m socket ; FAIL
[mangle INPUT] -m socket ; =
-m socket ; =
[nat INPUT] -m socket ; =
[raw PREROUTING] -m socket ; =
[mangle PREROUTING] -m socket ; =
[mangle PREROUTING] -p tcp -m socket --restore-skmark ; =

# cluster
[mangle PREROUTING] -m cluster ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 2 --cluster-local-node 1 --cluster-hash-seed 0xdeadbeef ; -m cluster --cluster-local-nodemask 0x00000001 --cluster-total-nodes 2 --cluster-hash-seed 0xdeadbeef
[mangle PREROUTING] -m cluster --cluster-total-nodes 2 --cluster-local-node 3 --cluster-hash-seed 0xdeadbeef ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 2 ! --cluster-local-node 2 --cluster-hash-seed 1 ; -m cluster ! --cluster-local-nodemask 0x00000002 --cluster-total-nodes 2 --cluster-hash-seed 0x00000001
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 --cluster-local-nodemask 6 --cluster-hash-seed 1 ; -m cluster --cluster-local-nodemask 0x00000006 --cluster-total-nodes 3 --cluster-hash-seed 0x00000001
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 ! --cluster-local-nodemask 6 --cluster-hash-seed 1 ; -m cluster ! --cluster-local-nodemask 0x00000006 --cluster-total-nodes 3 --cluster-hash-seed 0x00000001
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 --cluster-local-nodemask 8 --cluster-hash-seed 1 ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 33 --cluster-local-nodemask 8 --cluster-hash-seed 1 ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 --cluster-local-node 1 ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 --cluster-hash-seed 1 ; FAIL
[mangle PREROUTING] -m cluster --cluster-total-nodes 3 --cluster-local-node 1 --cluster-local-nodemask 1 --cluster-hash-seed 1 ; FAIL

# bpf
[mangle PREROUTING] -m bpf --bytecode "1,6 0 0 0" ; =
[mangle PREROUTING] -m bpf --bytecode "4,48 0 0 9,21 0 1 6,6 0 0 1,6 0 0 0" ; =
[mangle PREROUTING] -m bpf ! --bytecode "1,6 0 0 0" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "2,6 0 0 0" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "1,6 0 0 0," ; -m bpf --bytecode "1,6 0 0 0"
[mangle PREROUTING] -m bpf --bytecode "0," ; FAIL
[mangle PREROUTING] -m bpf --bytecode "65,6 0 0 0" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "foo" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "1,6 0 0" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "1,99 0 0 0" ; FAIL
[mangle PREROUTING] -m bpf --bytecode "1,6 0 0 0x10" ; -m bpf --bytecode "1,6 0 0 0"
[mangle PREROUTING] -m bpf --bytecode " 1,6  0 0 5 " ; -m bpf --bytecode "1,6 0 0 5"
[mangle PREROUTING] -m bpf ; FAIL
[mangle PREROUTING] -m bpf --bytecode "3,48 0 0 9,21 0 9 6,6 0 0 1" ; FAIL

# connlabel
[mangle PREROUTING] -m connlabel ; FAIL
[mangle PREROUTING] -m connlabel --label 5 ; -m connlabel --label "5"
[mangle PREROUTING] -m connlabel --label foo ; FAIL
[mangle PREROUTING] -m connlabel --label 128 ; FAIL
[mangle PREROUTING] -m connlabel --label 127 ; -m connlabel --label "127"
[mangle PREROUTING] -m connlabel ! --label 5 --set ; -m connlabel ! --label "5" --set
[mangle PREROUTING] -m connlabel --label 5 --set ; -m connlabel --label "5" --set
[mangle PREROUTING] -m connlabel --set ; FAIL

# devgroup
[mangle PREROUTING] -m devgroup ; FAIL
[mangle PREROUTING] -m devgroup --src-group 1 ; -m devgroup --src-group 0x1
[mangle PREROUTING] -m devgroup --src-group 0x1/0xff ; =
[mangle PREROUTING] -m devgroup ! --src-group 5 ; -m devgroup ! --src-group 0x5
[mangle PREROUTING] -m devgroup --dst-group 5 ; FAIL
[mangle FORWARD] -m devgroup --dst-group 5 --src-group 4 ; -m devgroup --src-group 0x4 --dst-group 0x5
[mangle POSTROUTING] -m devgroup --dst-group default ; =
[mangle POSTROUTING] -m devgroup --src-group 1 ; FAIL
[mangle FORWARD] -m devgroup --src-group foo ; FAIL

# policy
[mangle FORWARD] -m policy ; FAIL
[mangle FORWARD] -m policy --dir in ; -m policy --dir in --pol ipsec
[mangle FORWARD] -m policy --pol none ; FAIL
[mangle FORWARD] -m policy --dir in --pol none ; =
[mangle FORWARD] -m policy --dir out --pol none ; =
[mangle FORWARD] -m policy --dir in --pol ipsec ; =
[mangle FORWARD] -m policy --dir foo --pol ipsec ; FAIL
[mangle FORWARD] -m policy --dir in --pol foo ; FAIL
[mangle PREROUTING] -m policy --dir out --pol none ; FAIL
[mangle POSTROUTING] -m policy --dir in --pol none ; FAIL
[mangle OUTPUT] -m policy --dir in --pol none ; FAIL
[mangle INPUT] -m policy --dir out --pol none ; FAIL
[mangle INPUT] -m policy --dir in --pol ipsec --strict ; FAIL
[mangle INPUT] -m policy --dir in --pol ipsec --strict --reqid 5 ; =
[mangle INPUT] -m policy --dir in --pol ipsec --reqid 5 --proto esp ; =
[mangle INPUT] -m policy --dir in --pol ipsec --reqid 5 --proto esp --next ; FAIL
[mangle INPUT] -m policy --dir in --pol ipsec --strict --reqid 5 --proto esp --next --reqid 6 --spi 0x10 --mode tunnel --tunnel-src 1.1.1.1 --tunnel-dst 2.2.2.2/24 ; -m policy --dir in --pol ipsec --strict --reqid 5 --proto esp --next --reqid 6 --spi 0x10 --mode tunnel --tunnel-dst 2.2.2.2/24 --tunnel-src 1.1.1.1
[mangle INPUT] -m policy --dir in --pol none --proto esp ; -m policy --dir in --pol none
[mangle INPUT] -m policy --dir in --pol ipsec ! --proto esp --mode transport ! --reqid 7 ! --spi 3 ; -m policy --dir in --pol ipsec ! --reqid 7 ! --spi 0x3 ! --proto esp --mode transport
[mangle INPUT] -m policy --dir in --pol ipsec --mode transport --tunnel-src 1.1.1.1 ; FAIL
[mangle INPUT] -m policy --dir in --pol ipsec --proto foo ; FAIL
[mangle INPUT] -m policy --dir in --pol ipsec --proto ah ; =
[mangle INPUT] -m policy --dir in --pol ipsec --proto ipcomp ; =
[mangle INPUT] -m policy --dir in --pol ipsec --mode foo ; FAIL

# esp
[mangle INPUT] -p esp -m esp ; =
[mangle INPUT] -p esp -m esp --espspi 5:10 ; =
[mangle INPUT] -p esp -m esp ! --espspi 5:10 ; =
[mangle INPUT] -p esp -m esp --espspi :10 ; -p esp -m esp --espspi 0:10
[mangle INPUT] -p esp -m esp --espspi 10: ; -p esp -m esp --espspi 10:4294967295
[mangle INPUT] -p esp -m esp --espspi 0x100 ; -p esp -m esp --espspi 256
[mangle INPUT] -p esp -m esp --espspi 0:4294967295 ; -p esp -m esp
[mangle INPUT] -p esp -m esp ! --espspi 0:4294967295 ; -p esp -m esp
[mangle INPUT] -p esp -m esp --espspi 4294967296 ; FAIL
[mangle INPUT] -p esp -m esp --espspi 10:5 ; =
[mangle INPUT] -m esp --espspi 5 ; FAIL

# ah
[mangle INPUT] -p ah -m ah ; =
[mangle INPUT] -p ah -m ah --ahspi 5:10 ; =
[mangle INPUT] -p ah -m ah ! --ahspi 5 ; =
[mangle INPUT] -p ah -m ah ! --ahspi 0:4294967295 ; -p ah -m ah
[mangle INPUT] -m ah --ahspi 5 ; FAIL

# ipcomp
[mangle INPUT] -p ipcomp -m ipcomp ; -p ipcomp -m ipcomp --ipcompspi 0
[mangle INPUT] -p ipcomp -m ipcomp --ipcompspi 5:9 ; =
[mangle INPUT] -p ipcomp -m ipcomp ! --ipcompspi 0x50 --compres ; -p ipcomp -m ipcomp ! --ipcompspi 80 --compres
[mangle INPUT] -p 108 -m ipcomp --compres ; -p ipcomp -m ipcomp --ipcompspi 0 --compres

# helper
[mangle INPUT] -m helper --helper ftp ; =
[mangle INPUT] -m helper ! --helper ftp-2121 ; =
[mangle INPUT] -m helper --helper "" ; =
[mangle INPUT] -m helper ; FAIL
[mangle INPUT] -m helper --helper "a b" ; =

# cpu
-m cpu --cpu 0 ; =
-m cpu ! --cpu 3 ; =
-m cpu --cpu 0x10 ; -m cpu --cpu 16
-m cpu --cpu 4294967295 ; =
-m cpu --cpu 4294967296 ; FAIL
-m cpu --cpu x ; FAIL
-m cpu ; FAIL
-m cpu --cpu 1 --cpu 2 ; FAIL
