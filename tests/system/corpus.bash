#!/bin/bash
# Takes configuration files as wg-quick(8) does, by its own functions, all upon the one interface there is; writes down
# beside each what it comes to, and how far it got. No hook is run, and nothing is done with DNS.
# Arguments: wg-quick's path; the interface; a folder with FOLDER/<name>/<interface>.conf for each file.

quick=$1 interface=$2 folder=$3
export WG_ENDPOINT_RESOLUTION_RETRIES=0
sed '/function override insertion point/q' "$quick" >"$folder/functions"

take() {
	source "$folder/functions"
	local i
	echo parse >stage
	parse_options "$PWD/$interface.conf"
	printf '%s\0' "MTU=$MTU" "TABLE=$TABLE" "SAVE=$SAVE_CONFIG" \
		"${DNS[@]/#/DNS=}" "${DNS_SEARCH[@]/#/SEARCH=}" "${PRE_UP[@]/#/PRE_UP=}" "${POST_UP[@]/#/POST_UP=}" \
		"${PRE_DOWN[@]/#/PRE_DOWN=}" "${POST_DOWN[@]/#/POST_DOWN=}" >parsed
	echo setconf >stage
	set_config
	wg show "$interface" dump >dump
	echo address >stage
	for i in "${ADDRESSES[@]}"; do add_addr "$i"; done
	ip -o addr show dev "$interface" >addresses
	echo mtu >stage
	[[ -z $MTU ]] || ip link set mtu "$MTU" dev "$interface"
	cat "/sys/class/net/$interface/mtu" >mtu
	echo table >stage
	if [[ -n $TABLE && $TABLE != auto ]]; then
		while read -r _ i; do for i in $i; do [[ $i != */* ]] || add_route "$i"; done; done < <(wg show "$interface" allowed-ips)
		ip -N -o route show table all dev "$interface" proto boot >routes
		ip -N -6 -o route show table all dev "$interface" proto boot >>routes
	fi
	echo taken >stage
}

for each in "$folder"/*/; do
	wg setconf "$interface" /dev/null
	ip link set dev "$interface" down
	ip address flush dev "$interface"
	ip link set dev "$interface" mtu 1420 # a smaller one has taken IPv6 off it
	ip link set dev "$interface" addrgenmode none
	ip link set dev "$interface" up
	(cd "$each" && take >said 2>&1)
done
exit 0 # the last file may well be refused
