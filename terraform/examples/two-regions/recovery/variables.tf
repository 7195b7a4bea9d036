variable "name" {
  description = "As in the root above: what the names of the roles begin with."
  type        = string
  default     = "example-mysql-pitr"
}

variable "shard" {
  description = "The shard."
  type        = string
  default     = "shop"
}

variable "dr_region" {
  description = "Where the copies are."
  type        = string
  default     = "eu-central-1"
}

variable "recovery_active" {
  description = "True for the recovery: the instance has the wider role."
  type        = bool
  default     = false
}

variable "volume_from_latest_snapshot" {
  description = "True: Terraform makes the data volume, from the newest EBS snapshot of the shard. False: mysql-pitr recover makes it, from the one that serves the target."
  type        = bool
  default     = false
}

variable "ami" {
  description = "An image of the DR region with mysqld and mysql-pitr."
  type        = string
}

variable "instance_type" {
  description = "The machine's type."
  type        = string
  default     = "r7i.2xlarge"
}

variable "subnet_id" {
  description = "Its subnet."
  type        = string
}

variable "security_group_ids" {
  description = "Its security groups."
  type        = list(string)
}

variable "kms_key_arn" {
  description = "The DR region's key (output dr_kms_key_arn of the root above)."
  type        = string
}
